"""A bundle takes no more bytes than it may, and loses first what is needed least."""

from __future__ import annotations

from pathlib import Path

from lightning_gradguard.evidence import read_bundle
from tests.builders import mlp
from tests.evidence.test_keeper import keeper, kept, two_steps

PARTS = ("the optimizer's state", "the other batch", "the weights", "the batch", "the random states")


def test_a_file_has_no_more_bytes_than_allowed_whatever_is_in_it(tmp_path: Path) -> None:
    module, made = mlp(norm=True), keeper(tmp_path, optimizer_state=True)
    two_steps(made, module)
    size, left_out = kept(made, module).stat().st_size, -1
    for allowed in range(size, 0, -1500):
        told: list[str] = []
        made = keeper(tmp_path, max_bytes=allowed, optimizer_state=True, warn=told.append)
        made.directory = tmp_path
        two_steps(made, module)
        path = kept(made, module)
        if told:
            assert "bytes, and may have" in told[0] and made.lost(str(path))
            break
        assert path.stat().st_size <= allowed
        bundle = read_bundle(path)
        assert [one.split(":")[0] for one in bundle.left_out] == list(PARTS[: len(bundle.left_out)])
        assert len(bundle.left_out) >= left_out
        left_out = len(bundle.left_out)
        path.unlink()
    assert left_out == len(PARTS) and told
