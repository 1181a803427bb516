-- They select, divide and join; every sum over weights was made in fixed order when the run was
-- written. Undefined values are NULL. Angles are degrees.
-- Columns are qualified throughout: DuckDB takes a bare name in a view for the parameter of that name
-- of a macro that reads it.

-- Functions take groups of one scope at a time: FROM top('relative_mds', 5, scope := 'layer').

-- Of the attempts at a run the one with the greatest name counts.
CREATE OR REPLACE VIEW attempts AS
SELECT r.* FROM stored_runs r
QUALIFY row_number() OVER (PARTITION BY r.run ORDER BY r.attempt DESC) = 1;

CREATE OR REPLACE VIEW runs AS
SELECT t.run, t.source, make_timestamp(epoch_us(t.created_at)) AS created_at, t.version,
    t.checkpoints, t.tensors, t.parameters, t.fraction, t.bytes_total, t.bytes_read, t.seconds,
    t.device, t.complete, coalesce(t.followed, false) AS followed, t.settings, t.plan
FROM attempts t;

CREATE OR REPLACE VIEW checkpoints AS
SELECT t.run, t.k, t.name, t.source, t.commit, t.step, t.elapsed, t.tokens, t.stage, t.bytes,
    t.dtype
FROM stored_checkpoints t
SEMI JOIN attempts USING (run, attempt);

CREATE OR REPLACE VIEW tensors AS
SELECT t.run, t.tensor, t.stack, t.layer, t.component, t.expert, t.kind, t.shape, t.numel,
    t.dtype, t.included, t.reason, t.fraction
FROM stored_tensors t
SEMI JOIN attempts USING (run, attempt);

-- What a group_id stands for: the key columns of the views below.
CREATE OR REPLACE VIEW groups AS
SELECT t.run, t.attempt, t.group_id, t.scope, t.stack, t.layer, t.component, t.tensor, t.head,
    t.expert, t.parameters, t.increments_kept
FROM stored_groups t
SEMI JOIN attempts USING (run, attempt);

CREATE OR REPLACE VIEW path AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, p.k, c.step,
    p.norm, p.displacement, p.increment,
    p.increment / nullif(lag(p.norm IGNORE NULLS) OVER before, 0) AS relative_increment,
    p.path_length, p.update_angle_deg, p.update_angle_stderr_deg, p.angle_to_first_deg,
    p.angle_to_last_deg, p.apex_angle_next_deg, p.apex_angle_last_deg,
    p.straight_turn_1_deg AS noise_floor_deg,
    p.turn_2_deg, p.turn_4_deg, p.turn_8_deg, p.turn_16_deg,
    p.straight_turn_1_deg, p.straight_turn_2_deg, p.straight_turn_4_deg, p.straight_turn_8_deg,
    p.straight_turn_16_deg,
    p.radial_increment, p.angular_speed_deg, p.remaining, p.along_end, p.off_end
FROM stored_path p
JOIN groups g USING (run, attempt, group_id)
JOIN checkpoints c USING (run, k)
WINDOW before AS (
    PARTITION BY g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert
    ORDER BY p.k
);

-- Of runs with `--statistics`: shares of the weights, and what equal steps, rounded, would change.
CREATE OR REPLACE VIEW sparsity AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, s.k, c.step,
    s.changed, s.changed_expected, s.changed_since_first, s.ever_changed, s.reverted,
    s.changed_again, s.overlap, s.overlap_expected, s.visible, s.beyond_1e5
FROM stored_sparsity s
JOIN groups g USING (run, attempt, group_id)
JOIN checkpoints c USING (run, k);

CREATE OR REPLACE VIEW values AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, s.k, c.step,
    s.mean, s.mean_size, s.variance, s.skewness, s.kurtosis, s.largest, s.zeros, s.sign_changes,
    s.sign_changes_since_first, s.size_p01, s.size_p10, s.size_p50, s.size_p90, s.size_p99,
    s.size_p999
FROM stored_values s
JOIN groups g USING (run, attempt, group_id)
JOIN checkpoints c USING (run, k);

-- Of runs with `--statistics rows`: the rows of embeddings and output heads that were read whole.
CREATE OR REPLACE VIEW rows AS
SELECT t.run, t.tensor, t.row, t.norm_first, t.norm_last, t.cosine_first_last, t.last_moved_k
FROM stored_rows t
SEMI JOIN attempts USING (run, attempt);

-- Of runs with `--spectra`: the ten largest singular values of whole matrices, and ranks made of all of them.
CREATE OR REPLACE VIEW matrix_spectrum AS
SELECT t.run, t.tensor, t.expert, t.k, c.step, t.of, t.rank, t.sigma
FROM stored_matrix_spectrum t
SEMI JOIN attempts USING (run, attempt)
JOIN checkpoints c ON c.run = t.run AND c.k = t.k;

CREATE OR REPLACE VIEW matrix_ranks AS
SELECT t.run, t.tensor, t.expert, t.k, c.step, t.of, t.stable_rank, t.matrix_effective_rank,
    t.matrix_participation_ratio
FROM stored_matrix_ranks t
SEMI JOIN attempts USING (run, attempt)
JOIN checkpoints c ON c.run = t.run AND c.k = t.k;

-- A cosine is a dot product over two norms. Checkpoints whose stored values are equal have
-- distance 0, and then a cosine of exactly 1. (greatest and least pass NULLs over: asked first.)
CREATE OR REPLACE VIEW similarity AS
WITH lengths AS (
    SELECT p.run, p.attempt, p.group_id, p.k, p.norm, p.displacement
    FROM stored_path p
)
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, s.i, s.j,
    ci.step AS step_i, cj.step AS step_j, ci.source AS source_i, cj.source AS source_j, s.dot,
    CASE WHEN s.dot IS NULL OR pi.norm * pj.norm = 0 THEN NULL WHEN s.squared_distance = 0 THEN 1.0
        ELSE greatest(-1.0, least(1.0, s.dot / (pi.norm * pj.norm))) END AS cosine,
    s.relative_dot,
    CASE WHEN s.dot IS NULL OR pi.displacement * pj.displacement = 0 THEN NULL
        WHEN s.squared_distance = 0 AND ci.source = cj.source THEN 1.0
        ELSE greatest(-1.0, least(1.0, s.relative_dot / (pi.displacement * pj.displacement)))
        END AS relative_cosine,
    sqrt(s.squared_distance) AS distance, s.cosine_stderr, s.relative_cosine_stderr
FROM stored_similarity s
JOIN groups g USING (run, attempt, group_id)
JOIN lengths pi ON pi.run = s.run AND pi.attempt = s.attempt AND pi.group_id = s.group_id
    AND pi.k = s.i
JOIN lengths pj ON pj.run = s.run AND pj.attempt = s.attempt AND pj.group_id = s.group_id
    AND pj.k = s.j
JOIN checkpoints ci ON ci.run = s.run AND ci.k = s.i
JOIN checkpoints cj ON cj.run = s.run AND cj.k = s.j;

-- Of increments alone: none leads to the first checkpoint of a source, nor past an absent one. Their
-- products are stored, since from distances they would cancel.
CREATE OR REPLACE VIEW update_similarity AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, s.i, s.j,
    ci.step AS step_i, cj.step AS step_j,
    CASE WHEN pi.increment * pj.increment IS NOT NULL THEN s.increment_dot END AS dot,
    CASE WHEN s.increment_dot IS NOT NULL AND pi.increment * pj.increment > 0 THEN
        CASE WHEN s.i = s.j THEN 1.0
            ELSE greatest(-1.0, least(1.0, s.increment_dot / (pi.increment * pj.increment))) END
        END AS cosine
FROM stored_similarity s
JOIN groups g USING (run, attempt, group_id)
JOIN stored_path pi ON pi.run = s.run AND pi.attempt = s.attempt AND pi.group_id = s.group_id
    AND pi.k = s.i
JOIN stored_path pj ON pj.run = s.run AND pj.attempt = s.attempt AND pj.group_id = s.group_id
    AND pj.k = s.j
JOIN checkpoints ci ON ci.run = s.run AND ci.k = s.i
JOIN checkpoints cj ON cj.run = s.run AND cj.k = s.j
WHERE s.i > 0 AND g.increments_kept;

CREATE OR REPLACE VIEW indicators AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, n.indicator,
    n.value, n.stderr, n.null_value, n.differs_from_null
FROM stored_indicators n
JOIN groups g USING (run, attempt, group_id);

-- How redundant the path of each group was: when its direction and its place were final, how predictable its
-- increments were, and how many directions they took. `remaining` is of the checkpoint of `saturation_step`,
-- which is found by its angle to the end: steps may repeat. A random walk's is at most sqrt(1 - 0.99²) = 0.14.
CREATE OR REPLACE VIEW redundancy AS
WITH figures AS (
    SELECT n.run, n.attempt, n.group_id,
        max(n.value) FILTER (n.indicator = 'saturation_step') AS saturation_step,
        max(n.value) FILTER (n.indicator = 'settled_step') AS settled_step,
        max(n.value) FILTER (n.indicator = 'predictability_1') AS predictability_1,
        max(n.value) FILTER (n.indicator = 'effective_rank') AS effective_rank,
        max(n.value) FILTER (n.indicator = 'rank_95') AS rank_95,
        max(n.null_value) FILTER (n.indicator = 'saturation_step') AS null_saturation_step,
        max(n.null_value) FILTER (n.indicator = 'settled_step') AS null_settled_step,
        max(n.null_value) FILTER (n.indicator = 'predictability_1') AS null_predictability_1,
        max(n.null_value) FILTER (n.indicator = 'effective_rank') AS null_effective_rank,
        max(n.null_value) FILTER (n.indicator = 'rank_95') AS null_rank_95
    FROM stored_indicators n
    GROUP BY n.run, n.attempt, n.group_id
), nexts AS (
    SELECT p.run, p.attempt, p.group_id, p.k, p.apex_angle_last_deg, lead(p.remaining) OVER (
        PARTITION BY p.run, p.attempt, p.group_id ORDER BY p.k
    ) AS remaining
    FROM stored_path p
    WHERE p.norm IS NOT NULL
), saturated AS (
    SELECT n.run, n.attempt, n.group_id, arg_max(n.remaining, n.k) AS remaining
    FROM nexts n
    WHERE n.remaining IS NOT NULL AND coalesce(n.apex_angle_last_deg > degrees(acos(0.99)), true)
    GROUP BY n.run, n.attempt, n.group_id
)
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, f.saturation_step,
    f.settled_step, CASE WHEN f.saturation_step IS NOT NULL THEN s.remaining END AS remaining,
    f.predictability_1, f.effective_rank, f.rank_95, f.null_saturation_step, f.null_settled_step,
    f.null_predictability_1, f.null_effective_rank, f.null_rank_95
FROM groups g
JOIN figures f ON f.run = g.run AND f.attempt = g.attempt AND f.group_id = g.group_id
LEFT JOIN saturated s ON s.run = g.run AND s.attempt = g.attempt AND s.group_id = g.group_id;

-- Parts of paths, each with the null values of its own checkpoints, of groups whose increments are kept.
-- What the training log says beside: FROM windows w ASOF JOIN … ON w.run = t.run AND w.step_last >= t.step
CREATE OR REPLACE VIEW windows AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, w.w, w.k_first,
    w.k_last, a.step AS step_first, b.step AS step_last, w.indicator, w.value, w.null_value
FROM stored_windows w
JOIN groups g USING (run, attempt, group_id)
JOIN checkpoints a ON a.run = w.run AND a.k = w.k_first
JOIN checkpoints b ON b.run = w.run AND b.k = w.k_last;

CREATE OR REPLACE VIEW stages AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, a.stage, s.k_first,
    s.k_last, a.step AS step_first, b.step AS step_last, s.indicator, s.value, s.null_value
FROM stored_stages s
JOIN groups g USING (run, attempt, group_id)
JOIN checkpoints a ON a.run = s.run AND a.k = s.k_first
JOIN checkpoints b ON b.run = s.run AND b.k = s.k_last;

-- Phases lie between changes of the size of the increments; a phase ends where the next one begins. None of
-- groups of fewer than 1,000 weights, nor where no six increments over equal times follow each other.
CREATE OR REPLACE VIEW phases AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, p.phase, p.k_first,
    p.k_last, a.step AS step_first, b.step AS step_last, p.jump, p.indicator, p.value, p.null_value
FROM stored_phases p
JOIN groups g USING (run, attempt, group_id)
JOIN checkpoints a ON a.run = p.run AND a.k = p.k_first
JOIN checkpoints b ON b.run = p.run AND b.k = p.k_last;

CREATE OR REPLACE VIEW spectrum AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, s.basis, s.rank,
    s.eigenvalue, s.share
FROM stored_spectrum s
JOIN groups g USING (run, attempt, group_id);

CREATE OR REPLACE VIEW projection AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, p.k, p.pc1,
    p.pc2, p.pc3
FROM stored_projection p
JOIN groups g USING (run, attempt, group_id);

CREATE OR REPLACE VIEW findings AS
SELECT t.run, t.severity, t.kind, t.k, t.tensor, t.message, t.evidence
FROM stored_findings t
SEMI JOIN attempts USING (run, attempt);

-- What the training logged, where known. The last loss at or before each checkpoint:
-- FROM checkpoints c ASOF JOIN (FROM training WHERE metric = 'loss') t ON c.run = t.run AND c.step >= t.step
CREATE OR REPLACE VIEW training AS
SELECT t.run, t.k, t.step, t.split, t.metric, t.value
FROM stored_training t
SEMI JOIN attempts USING (run, attempt);

-- The whole square of a map, a row for each ordered pair, of every group that fits.
CREATE OR REPLACE MACRO trajectory_map(
    run, scope := 'model', layer := NULL, component := NULL, tensor := NULL
) AS TABLE
WITH half AS (
    FROM similarity s
    WHERE s.run = run AND s.scope = scope AND (layer IS NULL OR s.layer = layer)
        AND (component IS NULL OR s.component = component)
        AND (tensor IS NULL OR s.tensor = tensor)
)
SELECT h.run, h.scope, h.stack, h.layer, h.component, h.tensor, h.head, h.expert, h.i, h.j,
    h.step_i, h.step_j, h.cosine, h.relative_cosine, h.distance
FROM half h
UNION ALL
SELECT h.run, h.scope, h.stack, h.layer, h.component, h.tensor, h.head, h.expert, h.j, h.i,
    h.step_j, h.step_i, h.cosine, h.relative_cosine, h.distance
FROM half h
WHERE h.i < h.j;

-- One indicator of the same groups in every run, the largest first.
CREATE OR REPLACE MACRO compare(indicator, scope := 'model') AS TABLE
SELECT n.scope, n.stack, n.layer, n.component, n.tensor, n.head, n.expert, n.run, n.value, n.stderr,
    n.null_value, n.value - n.null_value AS above_null,
    rank() OVER (
        PARTITION BY n.stack, n.layer, n.component, n.tensor, n.head, n.expert
        ORDER BY n.value DESC NULLS LAST
    ) AS place, r.settings
FROM indicators n
JOIN runs r ON r.run = n.run
WHERE n.indicator = indicator AND n.scope = scope
ORDER BY n.stack, n.layer, n.component, n.tensor, n.head, n.expert, place, n.run;

-- An indicator over seeds, or all where that is NULL: mean, its standard error and the random walk's, for every combination of the settings
-- in which runs differ, their seeds aside. `runs` is a list of patterns: 'momentum-*' or 'base,seed-1'. Those
-- without settings are none of them; of one seed twice their mean counts, a run without one counts by itself;
-- networks of other sizes and other numbers of checkpoints are not averaged.
CREATE OR REPLACE MACRO over_seeds(indicator, scope := 'model', runs := '*') AS TABLE
WITH chosen AS (
    SELECT r.run, CASE WHEN json_valid(r.settings) THEN r.settings END AS settings, r.checkpoints,
        r.parameters
    FROM runs r
    WHERE r.settings IS NOT NULL
        AND len(list_filter(string_split(runs, ','), lambda name: r.run GLOB trim(name))) > 0
), stated AS (
    SELECT c.run, e.key, regexp_matches(e.key, '(^|[._])seed$') AS is_seed,
        CASE WHEN e.type IN ('BIGINT', 'UBIGINT', 'DOUBLE')
            THEN regexp_replace(e.value::DOUBLE::VARCHAR, '\.0$', '') ELSE e.value::VARCHAR END AS value
    FROM chosen c, json_each(c.settings) e
), varying AS (
    SELECT s.key
    FROM stated s
    GROUP BY s.key
    HAVING count(DISTINCT s.value) > 1 OR count(*) < (SELECT count(*) FROM chosen)
), combinations AS (
    SELECT c.run, c.checkpoints, c.parameters,
        concat('{', string_agg(s.setting, ', ' ORDER BY s.key) FILTER (NOT s.is_seed), '}') AS settings,
        list(try_cast(s.value AS DOUBLE) ORDER BY s.key) FILTER (NOT s.is_seed) AS numbers,
        coalesce(string_agg(s.setting, ', ' ORDER BY s.key) FILTER (s.is_seed), c.run) AS seed
    FROM chosen c
    LEFT JOIN (
        SELECT s.run, s.key, s.value, s.is_seed, concat(to_json(s.key), ': ', s.value) AS setting
        FROM stated s
        LEFT JOIN varying v ON v.key = s.key
        WHERE s.is_seed OR v.key IS NOT NULL
    ) s ON s.run = c.run
    GROUP BY c.run, c.checkpoints, c.parameters
), of_seeds AS (
    SELECT n.scope, n.stack, n.layer, n.component, n.tensor, n.head, n.expert, c.settings, c.checkpoints,
        c.parameters, c.numbers, c.seed, n.indicator, avg(n.value) AS value, avg(n.null_value) AS null_value
    FROM combinations c
    JOIN indicators n ON n.run = c.run
    WHERE (indicator IS NULL OR n.indicator = indicator) AND n.scope = scope AND n.value IS NOT NULL
    GROUP BY ALL
)
SELECT o.scope, o.stack, o.layer, o.component, o.tensor, o.head, o.expert, o.indicator, o.settings,
    o.checkpoints, o.parameters, count(*) AS seeds, avg(o.value ORDER BY o.seed) AS mean,
    stddev_samp(o.value ORDER BY o.seed) / sqrt(count(*)) AS stderr,
    avg(o.null_value ORDER BY o.seed) AS null_value
FROM of_seeds o
GROUP BY o.scope, o.stack, o.layer, o.component, o.tensor, o.head, o.expert, o.indicator, o.settings,
    o.numbers, o.checkpoints, o.parameters
ORDER BY o.stack, o.layer, o.component, o.tensor, o.head, o.expert, o.indicator, o.numbers, o.settings,
    o.checkpoints, o.parameters;

-- Two runs, indicator by indicator; a group that one of them lacks has NULL there. Its name is a word
-- of SQL, so it stands in double quotes: FROM "between"('a', 'b').
CREATE OR REPLACE MACRO "between"(run_a, run_b, scope := 'model') AS TABLE
WITH a AS (
    FROM indicators n WHERE n.run = run_a AND n.scope = scope
), b AS (
    FROM indicators n WHERE n.run = run_b AND n.scope = scope
)
SELECT scope AS scope, coalesce(a.stack, b.stack) AS stack, coalesce(a.layer, b.layer) AS layer,
    coalesce(a.component, b.component) AS component, coalesce(a.tensor, b.tensor) AS tensor,
    coalesce(a.head, b.head) AS head, coalesce(a.expert, b.expert) AS expert,
    coalesce(a.indicator, b.indicator) AS indicator, a.value AS value_a, b.value AS value_b,
    b.value - a.value AS difference, sqrt(a.stderr * a.stderr + b.stderr * b.stderr) AS stderr
FROM a
FULL JOIN b ON a.indicator = b.indicator AND a.stack IS NOT DISTINCT FROM b.stack
    AND a.layer IS NOT DISTINCT FROM b.layer AND a.component IS NOT DISTINCT FROM b.component
    AND a.tensor IS NOT DISTINCT FROM b.tensor AND a.head IS NOT DISTINCT FROM b.head
    AND a.expert IS NOT DISTINCT FROM b.expert;

-- Cosines of displacements from checkpoint k, in place of checkpoint 0. From distances, which is less
-- exact than `relative_cosine` where two displacements differ much in length.
CREATE OR REPLACE MACRO from_anchor(run, k, scope := 'model') AS TABLE
WITH pairs AS (
    SELECT g.run, g.group_id, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert,
        s.i, s.j, s.squared_distance AS squared
    FROM stored_similarity s
    JOIN groups g ON g.run = s.run AND g.attempt = s.attempt AND g.group_id = s.group_id
    WHERE g.run = run AND g.scope = scope
), displacements AS (
    SELECT p.group_id, CASE WHEN p.i = k THEN p.j ELSE p.i END AS place, p.squared
    FROM pairs p
    WHERE (p.i = k OR p.j = k) AND p.squared > 0
)
SELECT p.run, p.scope, p.stack, p.layer, p.component, p.tensor, p.head, p.expert, p.i, p.j,
    ci.step AS step_i, cj.step AS step_j,
    greatest(-1.0, least(1.0, (a.squared + b.squared - p.squared) / (2 * sqrt(a.squared * b.squared))))
        AS relative_cosine
FROM pairs p
JOIN displacements a ON a.group_id = p.group_id AND a.place = p.i
JOIN displacements b ON b.group_id = p.group_id AND b.place = p.j
JOIN checkpoints ci ON ci.run = p.run AND ci.k = p.i
JOIN checkpoints cj ON cj.run = p.run AND cj.k = p.j;

-- MDS of the checkpoints from a to b alone; relative: of displacements from checkpoint a.
CREATE OR REPLACE MACRO window_mds(run, a, b, scope := 'model') AS TABLE
WITH weights AS (
    SELECT s.stack, s.layer, s.component, s.tensor, s.head, s.expert,
        sum(s.cosine * (1 + (s.i < s.j)::INT)) AS total,
        sum(1 + (s.i < s.j)::INT) FILTER (s.cosine IS NOT NULL) AS number
    FROM similarity s
    WHERE s.run = run AND s.scope = scope AND s.i >= a AND s.j <= b
    GROUP BY ALL
), displacements AS (
    SELECT s.stack, s.layer, s.component, s.tensor, s.head, s.expert,
        sum(s.relative_cosine * (1 + (s.i < s.j)::INT)) AS total,
        sum(1 + (s.i < s.j)::INT) FILTER (s.relative_cosine IS NOT NULL) AS number
    FROM from_anchor(run, a, scope := scope) s
    WHERE s.i >= a AND s.j <= b
    GROUP BY ALL
)
SELECT run AS run, scope AS scope, w.stack, w.layer, w.component, w.tensor, w.head, w.expert,
    a AS k_first, b AS k_last, w.total / nullif(w.number, 0) AS mds,
    d.total / nullif(d.number, 0) AS relative_mds
FROM weights w
LEFT JOIN displacements d ON w.stack IS NOT DISTINCT FROM d.stack
    AND w.layer IS NOT DISTINCT FROM d.layer AND w.component IS NOT DISTINCT FROM d.component
    AND w.tensor IS NOT DISTINCT FROM d.tensor AND w.head IS NOT DISTINCT FROM d.head
    AND w.expert IS NOT DISTINCT FROM d.expert;

-- The part of every displacement along the direction from checkpoint i to checkpoint j, and the part across
-- it, in lengths of that direction. A run of several sources has the checkpoints of all of them: the
-- direction may be of one, or lead from one to another. From squared distances alone, which every scope
-- has: doubles that one S gave, so that what cancels is 1e-16 (displacement / direction)².
CREATE OR REPLACE MACRO along(
    run, i, j, scope := 'model', layer := NULL, component := NULL, tensor := NULL
) AS TABLE
WITH asked AS (
    SELECT CASE WHEN count(*) = 0 THEN error(concat('along: no run ', coalesce(run::VARCHAR, 'NULL')))
        WHEN count_if(c.k = coalesce(i, -1)) = 0 OR count_if(c.k = coalesce(j, -1)) = 0 THEN error(concat(
            'along: expected checkpoints from 0 to ', max(c.k), ', found ',
            coalesce(i::VARCHAR, 'NULL'), ' and ', coalesce(j::VARCHAR, 'NULL')))
        ELSE max(c.k) FILTER (c.k = coalesce(i, -1)) END AS i, max(c.k) FILTER (c.k = coalesce(j, -1)) AS j
    FROM checkpoints c
    WHERE c.run = coalesce(run, '')
), pairs AS (
    SELECT s.group_id, s.i, s.j, s.squared_distance AS squared
    FROM stored_similarity s
    JOIN groups g ON g.run = s.run AND g.attempt = s.attempt AND g.group_id = s.group_id
    WHERE g.run = coalesce(run, '') AND g.scope = scope AND (layer IS NULL OR g.layer = layer)
        AND (component IS NULL OR g.component = component) AND (tensor IS NULL OR g.tensor = tensor)
), all_pairs AS (
    SELECT p.group_id, p.i AS a, p.j AS b, p.squared FROM pairs p
    UNION ALL
    SELECT p.group_id, p.j, p.i, p.squared FROM pairs p WHERE p.i < p.j
), starts AS (
    SELECT s.group_id, s.a AS k, c.step, c.source,
        min(CASE WHEN s.squared IS NOT NULL THEN s.a END) OVER (
            PARTITION BY s.group_id, c.source
        ) AS first
    FROM all_pairs s
    JOIN checkpoints c ON c.k = s.a
    WHERE s.a = s.b AND c.run = coalesce(run, '')
), parts AS (
    SELECT o.*, d.squared / nullif(v.squared, 0) AS squared_length,
        (k_i.squared - k_j.squared - first_i.squared + first_j.squared) / (2 * nullif(v.squared, 0))
            AS along
    FROM starts o
    CROSS JOIN asked e
    JOIN all_pairs v ON v.group_id = o.group_id AND v.a = e.i AND v.b = e.j
    JOIN all_pairs d ON d.group_id = o.group_id AND d.a = o.first AND d.b = o.k
    JOIN all_pairs k_i ON k_i.group_id = o.group_id AND k_i.a = o.k AND k_i.b = e.i
    JOIN all_pairs k_j ON k_j.group_id = o.group_id AND k_j.a = o.k AND k_j.b = e.j
    JOIN all_pairs first_i ON first_i.group_id = o.group_id AND first_i.a = o.first AND first_i.b = e.i
    JOIN all_pairs first_j ON first_j.group_id = o.group_id AND first_j.a = o.first AND first_j.b = e.j
)
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, p.k, p.step, p.source,
    p.along, CASE WHEN p.along IS NOT NULL AND p.squared_length IS NOT NULL
        THEN sqrt(greatest(0.0, p.squared_length - p.along * p.along)) END AS off
FROM parts p
JOIN groups g ON g.run = coalesce(run, '') AND g.group_id = p.group_id;

-- How much each checkpoint counts in a combination of them, adding up to 1: a list with a number for each,
-- or in the words of `hallmarks average`. 'last:8': the mean of the last 8. 'ema:0.95': 0.95 times as much
-- with each checkpoint further back. 'warmdown:8': what a linear fall of the learning rate to 0 over the
-- last 8 increments would have made of them, the mean over that time (arXiv 2507.17634: an increment
-- counts with the weights of all checkpoints from it on).
CREATE OR REPLACE MACRO average_weights(run, weights) AS TABLE
WITH asked AS (
    SELECT weights::VARCHAR AS words, split_part(words, ':', 1) AS kind,
        try_cast(split_part(words, ':', 2) AS DOUBLE) AS number, try_cast(words AS DOUBLE[]) AS listed,
        kind IN ('last', 'ema', 'warmdown') AND words LIKE '%:%' AS is_named
), numbered AS (
    SELECT c.run, c.k, c.name, c.step, count(*) OVER () - 1 - c.k AS ahead,
        CASE WHEN count(c.elapsed) OVER () = count(*) OVER () THEN c.elapsed ELSE c.k END AS time
    FROM checkpoints c
    WHERE c.run = coalesce(run, '')
), checked AS (
    SELECT a.*, CASE WHEN p.count = 0
            THEN error(concat('average: no run ', coalesce(run::VARCHAR, 'NULL')))
        WHEN a.is_named AND p.sources > 1 THEN error(concat('average: ', a.kind,
            ' is of one source, the run has ', p.sources, ': expected a list of ', p.count, ' weights'))
        WHEN a.kind = 'ema' AND a.is_named THEN CASE WHEN coalesce(a.number >= 0 AND a.number < 1, false)
            THEN true ELSE error(concat('average: expected ema:DECAY, from 0 to below 1, found ',
                left(a.words, 60))) END
        WHEN a.is_named THEN CASE WHEN coalesce(a.number = floor(a.number)
                AND a.number BETWEEN 1 AND p.count - (a.kind = 'warmdown')::INT, false)
            THEN true ELSE error(concat('average: expected ', a.kind, ':M, M from 1 to ',
                p.count - (a.kind = 'warmdown')::INT, ', found ', left(a.words, 60))) END
        WHEN a.listed IS NULL THEN error(concat('average: expected last:M, ema:DECAY, warmdown:M or a list'
            ' of numbers, found ', coalesce(left(a.words, 60), 'NULL')))
        WHEN len(a.listed) <> p.count THEN error(concat('average: expected ', p.count,
            ' weights, one for each checkpoint, found ', len(a.listed)))
        WHEN NOT coalesce(list_bool_and(list_transform(a.listed,
                lambda x: coalesce(isfinite(x), false))), false)
            THEN error('average: expected numbers as weights, found NULL, NaN or infinity')
        WHEN abs(list_sum(a.listed) - 1) > 1e-6
            THEN error(concat('average: expected weights that add up to 1, found ', list_sum(a.listed)))
        ELSE true END AS sound
    FROM asked a, (
        SELECT count(*) AS count, count(DISTINCT c.source) AS sources FROM checkpoints c WHERE c.run = coalesce(run, '')
    ) p
), shares AS (
    SELECT p.run, p.k, p.step, p.name, CASE WHEN NOT a.is_named THEN a.listed[p.k + 1]
        WHEN a.kind = 'ema' THEN pow(a.number, p.ahead)
        WHEN a.kind = 'last' THEN (p.ahead < a.number)::INT
        WHEN p.ahead <= a.number THEN lead(p.time, 1, p.time) OVER in_order
            - CASE WHEN p.ahead = a.number THEN p.time ELSE lag(p.time) OVER in_order END
        ELSE 0 END AS share
    FROM numbered p
    JOIN checked a ON a.sound
    WINDOW in_order AS (ORDER BY p.k)
)
SELECT s.run, s.k, s.step, s.name, s.share / sum(s.share) OVER () AS weight
FROM shares s;

-- Norm of a combination of checkpoints, and its distance and angle from every checkpoint. It says where
-- an average lies, not how good it is: for that its loss has to be measured.
CREATE OR REPLACE MACRO average(
    run, weights, scope := 'model', layer := NULL, component := NULL, tensor := NULL
) AS TABLE
WITH chosen AS MATERIALIZED (
    SELECT w.k, w.weight FROM average_weights(run, weights) w
), pairs AS (
    SELECT s.group_id, s.i, s.j, s.dot, s.squared_distance AS squared
    FROM stored_similarity s
    JOIN groups g ON g.run = s.run AND g.attempt = s.attempt AND g.group_id = s.group_id
    WHERE g.run = coalesce(run, '') AND g.scope = scope AND (layer IS NULL OR g.layer = layer)
        AND (component IS NULL OR g.component = component) AND (tensor IS NULL OR g.tensor = tensor)
), all_pairs AS (
    SELECT p.group_id, p.i AS a, p.j AS b, p.dot, p.squared FROM pairs p
    UNION ALL
    SELECT p.group_id, p.j, p.i, p.dot, p.squared FROM pairs p WHERE p.i < p.j
), means AS (
    SELECT s.group_id, s.b AS k,
        CASE WHEN count(s.dot) = count(*) THEN sum(c.weight * s.dot) END AS dot,
        CASE WHEN count(s.squared) = count(*) THEN sum(c.weight * s.squared) END AS squared
    FROM all_pairs s
    JOIN chosen c ON c.k = s.a
    WHERE c.weight <> 0
    GROUP BY s.group_id, s.b
), spread AS (
    SELECT m.group_id,
        CASE WHEN count(m.dot) = count(*) THEN sqrt(greatest(0.0, sum(c.weight * m.dot))) END AS norm,
        CASE WHEN count(m.squared) = count(*) THEN sum(c.weight * m.squared) / 2 END AS squared
    FROM means m
    JOIN chosen c ON c.k = m.k
    WHERE c.weight <> 0
    GROUP BY m.group_id
), lengths AS (
    SELECT m.group_id, m.k, o.norm, p.norm AS norm_k, CASE WHEN m.squared - o.squared IS NOT NULL
        THEN sqrt(greatest(0.0, m.squared - o.squared)) END AS distance
    FROM means m
    JOIN spread o ON o.group_id = m.group_id
    JOIN groups g ON g.run = coalesce(run, '') AND g.group_id = m.group_id
    JOIN stored_path p ON p.run = g.run AND p.attempt = g.attempt AND p.group_id = g.group_id AND p.k = m.k
)
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, l.k, n.step, c.weight,
    l.norm, l.distance, CASE WHEN l.distance IS NOT NULL AND l.norm * l.norm_k > 0 THEN degrees(2 * atan2(
        sqrt(greatest(0.0, l.distance ** 2 - (l.norm - l.norm_k) ** 2)),
        sqrt(greatest(0.0, (l.norm + l.norm_k) ** 2 - l.distance ** 2)))) END AS angle_deg
FROM lengths l
JOIN groups g ON g.run = coalesce(run, '') AND g.group_id = l.group_id
JOIN chosen c ON c.k = l.k
JOIN checkpoints n ON n.run = g.run AND n.k = l.k;

-- From which checkpoint on no more than this share of the whole displacement is left, for good.
CREATE OR REPLACE MACRO settled(run, threshold, scope := 'layer_component') AS TABLE
WITH pairs AS (
    SELECT g.run, g.group_id, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert,
        s.i AS place, sqrt(s.squared_distance) AS ahead
    FROM stored_similarity s
    JOIN groups g ON g.run = s.run AND g.attempt = s.attempt AND g.group_id = s.group_id
    WHERE g.run = run AND g.scope = scope AND s.squared_distance IS NOT NULL
    QUALIFY s.j = max(s.j) OVER (PARTITION BY g.run, g.group_id)
), shares AS (
    SELECT p.*, p.ahead / nullif(first(p.ahead) OVER (
        PARTITION BY p.run, p.group_id ORDER BY p.place
    ), 0) AS remaining
    FROM pairs p
), beyond AS (
    SELECT s.*, coalesce(max(CASE WHEN s.remaining > threshold THEN s.place END) OVER (
        PARTITION BY s.run, s.group_id
    ), -1) AS last_beyond
    FROM shares s
)
SELECT s.run, s.scope, s.stack, s.layer, s.component, s.tensor, s.head, s.expert, s.place AS k, c.step,
    s.remaining
FROM beyond s
JOIN checkpoints c ON c.run = s.run AND c.k = s.place
WHERE s.place > s.last_beyond
QUALIFY s.place = min(s.place) OVER (PARTITION BY s.run, s.group_id)
ORDER BY s.place, s.stack, s.layer, s.component, s.tensor;

-- The groups of each run that have most of something.
CREATE OR REPLACE MACRO top(indicator, n, scope := 'layer_component') AS TABLE
SELECT f.run, f.scope, f.stack, f.layer, f.component, f.tensor, f.head, f.expert, f.value, f.stderr,
    f.null_value, f.differs_from_null
FROM indicators f
WHERE f.indicator = indicator AND f.scope = scope AND f.value IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY f.run ORDER BY f.value DESC) <= n
ORDER BY f.run, f.value DESC;
