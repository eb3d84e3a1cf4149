// All modules, named in one place: the browser then fetches them at once, instead of level by level.

import "./api.js";
import "./dom.js";
import "./export.js";
import "./fit.js";
import "./heat.js";
import "./host.js";
import "./incidents.js";
import "./labels.js";
import "./legend.js";
import "./lines.js";
import "./loss.js";
import "./marks.js";
import "./norm.js";
import "./page.js";
import "./palette.js";
import "./panel.js";
import "./parts.js";
import "./pointer.js";
import "./readout.js";
import "./rows.js";
import "./scale.js";
import "./state.js";
import "./statistics.js";
import "./tools.js";
import "./verdict.js";
import "./witnesses.js";
