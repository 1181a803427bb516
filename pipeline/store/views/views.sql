-- They select, divide and join; every sum over weights was made in fixed order when the run was
-- written. Undefined values are NULL. Angles are degrees.

-- Of the attempts at a run the one with the greatest name counts.
CREATE OR REPLACE VIEW attempts AS
SELECT * FROM stored_runs
QUALIFY row_number() OVER (PARTITION BY run ORDER BY attempt DESC) = 1;

CREATE OR REPLACE VIEW runs AS
SELECT run, source, created_at, version, checkpoints, tensors, parameters, fraction, bytes_total,
    bytes_read, seconds, device, complete, settings, plan
FROM attempts;

CREATE OR REPLACE VIEW checkpoints AS
SELECT run, k, name, t.source, commit, step, elapsed, tokens, stage, bytes, dtype
FROM stored_checkpoints t
SEMI JOIN attempts USING (run, attempt);

CREATE OR REPLACE VIEW tensors AS
SELECT run, tensor, stack, layer, component, expert, kind, shape, numel, dtype, included,
    reason, fraction
FROM stored_tensors
SEMI JOIN attempts USING (run, attempt);

-- What a group_id stands for: the key columns of the views below.
CREATE OR REPLACE VIEW groups AS
SELECT run, attempt, group_id, scope, stack, layer, component, tensor, head, expert
FROM stored_groups
SEMI JOIN attempts USING (run, attempt);

CREATE OR REPLACE VIEW path AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, p.k, c.step,
    p.norm, p.displacement, p.increment, p.path_length, p.update_angle_deg,
    p.update_angle_stderr_deg, p.angle_to_first_deg,
    p.angle_to_last_deg, p.apex_angle_next_deg, p.apex_angle_last_deg, p.noise_floor_deg
FROM stored_path p
JOIN groups g USING (run, attempt, group_id)
JOIN checkpoints c USING (run, k);

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

-- A cosine is a dot product over two norms. Checkpoints whose stored values are equal have
-- distance 0, and then a cosine of exactly 1. (greatest and least pass NULLs over: asked first.)
CREATE OR REPLACE VIEW similarity AS
WITH lengths AS (
    SELECT run, attempt, group_id, k, norm, displacement
    FROM stored_path
)
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, s.i, s.j,
    ci.step AS step_i, cj.step AS step_j, s.dot,
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

CREATE OR REPLACE VIEW indicators AS
SELECT g.run, g.scope, g.stack, g.layer, g.component, g.tensor, g.head, g.expert, n.indicator,
    n.value, n.stderr, n.null_value, n.differs_from_null
FROM stored_indicators n
JOIN groups g USING (run, attempt, group_id);

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
SELECT run, severity, kind, k, tensor, message, evidence
FROM stored_findings
SEMI JOIN attempts USING (run, attempt);
