// The query that gives what a figure shows, for `hallmarks sql` or any DuckDB.

const literal = (value) =>
  typeof value === "number" ? String(value) : `'${String(value).replaceAll("'", "''")}'`;

/** The condition that only this group of this run meets. */
function whereGroup(run, group) {
  const keys = ["stack", "layer", "component", "tensor", "head", "expert"];
  const conditions = keys
    .filter((key) => group[key] !== undefined || mayVary(run, group.scope, key))
    .map((key) => (group[key] === undefined ? `${key} IS NULL` : `${key} = ${literal(group[key])}`));
  return [`run = ${literal(run.run)}`, `scope = ${literal(group.scope)}`, ...conditions].join(" AND ");
}

const mayVary = (run, scope, key) =>
  run.groups.some((each) => each.scope === scope && each[key] !== undefined);

function mapQuery(run, group, kind) {
  const where = whereGroup(run, group);
  const every = group.maps.every;
  if (kind === "increments") return incrementsQuery(run, where, every);
  const thinned = every > 1 ? ` AND i % ${every} = 0 AND j % ${every} = 0` : "";
  return `SELECT i, j, step_i, step_j, ${cosineColumn(kind)}\nFROM similarity\nWHERE ${where}${thinned}\nORDER BY i, j`;
}

const cosineColumn = (kind) => (kind === "displacements" ? "relative_cosine" : "cosine");

/** Of a map of every few checkpoints: each increment is a sum of as many. */
function incrementsQuery(run, where, every) {
  if (every === 1)
    return `SELECT i, j, step_i, step_j, cosine\nFROM update_similarity\nWHERE ${where}\nORDER BY i, j`;
  const last = every * Math.floor((run.checkpoint.name.length - 1) / every);
  return `WITH sums AS (
    SELECT ${every} * ((i - 1) // ${every} + 1) AS a, ${every} * ((j - 1) // ${every} + 1) AS b,
        sum(CASE WHEN i < j AND a = b THEN 2 ELSE 1 END * dot) AS dot
    FROM update_similarity
    WHERE ${where} AND j <= ${last}
    GROUP BY ALL HAVING count(dot) = count(*)
)
SELECT s.a AS i, s.b AS j, ci.step AS step_i, cj.step AS step_j,
    CASE WHEN a.dot * b.dot > 0 THEN s.dot / sqrt(a.dot * b.dot) END AS cosine
FROM sums s
JOIN sums a ON a.a = s.a AND a.b = s.a
JOIN sums b ON b.a = s.b AND b.b = s.b
JOIN checkpoints ci ON ci.run = ${literal(run.run)} AND ci.k = s.a
JOIN checkpoints cj ON cj.run = ${literal(run.run)} AND cj.k = s.b
ORDER BY i, j`;
}

const curvesQuery = (
  run,
  group,
) => `SELECT k, step, norm, displacement, increment, relative_increment, update_angle_deg, path_length, noise_floor_deg${group.curves[ANGLE_ERROR] ? `, ${ANGLE_ERROR}` : ""}
FROM path
WHERE ${whereGroup(run, group)}
ORDER BY k`;

const indicatorsQuery = (run, group) => `SELECT indicator, value, stderr, null_value, differs_from_null
FROM indicators
WHERE ${whereGroup(run, group)}`;

const turnsQuery = (run, group) => `WITH scales AS (
    SELECT unnest([${TURNS.map(({ scale }) => scale).join(", ")}]) AS scale,
        unnest([${TURNS.map(({ indicator }) => `'${indicator}'`).join(", ")}]) AS indicator,
        unnest([${TURNS.map(({ scale }) => `avg(straight_turn_${scale}_deg)`).join(", ")}]) AS straight_turn_deg
    FROM path
    WHERE ${whereGroup(run, group)}
)
SELECT scale, value AS mean_turn_deg, stderr, straight_turn_deg
FROM scales JOIN indicators USING (indicator)
WHERE ${whereGroup(run, group)} AND value IS NOT NULL
ORDER BY scale`;

const windowsQuery = (run, group) => `SELECT k_last, step_last, indicator, value, null_value
FROM windows
WHERE ${whereGroup(run, group)} AND w = ${run.widths[0]}
    AND indicator IN (${Object.keys(group.windows).map(literal).join(", ")})
    AND value IS NOT NULL${group.maps.every > 1 ? ` AND k_last % ${group.maps.every} = 0` : ""}
ORDER BY k_last, indicator`;

const layersQuery = (run, indicator) => `SELECT scope, stack, layer, component, value, null_value
FROM indicators
WHERE run = ${literal(run.run)} AND scope IN ('layer', 'component', 'layer_component') AND indicator = ${literal(indicator)}
ORDER BY stack, layer, component`;

const settlingQuery = (run) => `SELECT scope, stack, layer, component, indicator, value, null_value
FROM indicators
WHERE run = ${literal(run.run)} AND scope IN ('model', 'layer', 'component') AND indicator IN ('settled_step', 'saturation_step')
ORDER BY scope, stack, layer, component`;

const projectionQuery = (run, group) => `SELECT k, pc1, pc2
FROM projection
WHERE ${whereGroup(run, group)}
ORDER BY k`;

const spectrumQuery = (run, group) => `SELECT rank, share
FROM spectrum
WHERE ${whereGroup(run, group)} AND basis = 'centered' AND rank <= 10
ORDER BY rank`;

function trainingQuery({ run, training: { points, curves } }) {
  const names = [...new Set(curves.map(({ metric }) => metric))].map(literal).join(", ");
  const where = `WHERE run = ${literal(run)} AND metric IN (${names})`;
  if (curves.every(({ number }) => number <= points))
    return `SELECT metric, split, step, k, value\nFROM training\n${where}\nORDER BY metric, split, step, k`;
  return `WITH numbered AS (
    SELECT metric, split, step, k, value,
        row_number() OVER (PARTITION BY metric, split ORDER BY step NULLS FIRST, k) - 1 AS place,
        count(*) OVER (PARTITION BY metric, split) AS number
    FROM training ${where}
)
SELECT metric, split, max(step) AS step, CASE WHEN count(*) = 1 THEN max(k) END AS k, avg(value) AS value
FROM numbered
GROUP BY metric, split, place // ceil(number / ${points})::BIGINT
ORDER BY metric, split, step, k`;
}

const redundancyQuery = (run, scopes) => `SELECT scope, stack, layer, component, ${REDUNDANCY.join(", ")}
FROM redundancy
WHERE run = ${literal(run.run)} AND scope IN (${scopes.map(literal).join(", ")})
ORDER BY saturation_step NULLS LAST, settled_step NULLS LAST, stack, layer, component`;

function settingsQuery({ runs }, group, indicator) {
  const keys = ["stack", "layer", "component"].map((key) => [key, group[key]]);
  const where = keys.map(([key, value]) => (value === undefined ? `${key} IS NULL` : `${key} = ${literal(value)}`));
  const chosen = runs === null ? "" : `, runs := ${literal(runs)}`;
  return `SELECT settings, checkpoints, parameters, seeds, mean, stderr, null_value
FROM over_seeds(${literal(indicator)}, scope := ${literal(group.scope)}${chosen})
WHERE ${where.join(" AND ")}`;
}

const runsQuery = (group) => `SELECT run, indicator, value, stderr, null_value
FROM indicators
WHERE scope = ${literal(group.scope)} AND run IN (${CONTENT.runs.map((run) => literal(run.run)).join(", ")})
ORDER BY indicator, run`;
