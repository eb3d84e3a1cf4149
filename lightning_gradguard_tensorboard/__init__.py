"""The GradGuard tab of TensorBoard: **event files → series → stretch → page**.

This is a package of its own beside ``lightning_gradguard``, shipped in the same distribution, because TensorBoard
imports every installed plugin when it starts: importing a module *inside* ``lightning_gradguard`` would run that
package's ``__init__`` and with it torch and lightning, seconds of start-up for everybody and, where one of them is
broken, a TensorBoard that does not start at all. Here only tensorboard, werkzeug, numpy and the standard library are
imported; a test keeps it so.

- ``wire``: names and layout of what the guard writes, as read from an event file
- ``reading``: what TensorBoard has read of a run, decoded once
- ``series``, ``weights``: one run's windows and layers on an axis that never goes back (``axis``,
  ``codes``, ``median``, ``outliers``)
- ``thinning``, ``packing``: a stretch of it, thinned to the width of a screen and packed for the page
- ``events``, ``story``, ``telling``: incidents, the verdict sentence, and the words that everybody else says too
- ``plugin``: the routes, and the loader named by the entry point
- ``static``: the page; plain ES modules, nothing is fetched from outside
"""

from __future__ import annotations

__all__: list[str] = []
