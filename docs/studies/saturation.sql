-- When directions and places are final, as shares of the training: hallmarks sql --store studies --file saturation.sql
WITH shares AS (
    SELECT r.settings->>'sweep' AS study, r.settings->>'network' AS network, (r.settings->>'width')::INT AS width,
        r.settings->>'schedule' AS schedule, d.saturation_step / c.last AS saturation,
        d.null_saturation_step / c.last AS of_walk, d.settled_step / c.last AS settled,
        d.null_settled_step / c.last AS settled_of_walk
    FROM redundancy d
    JOIN runs r USING (run)
    JOIN (SELECT run, max(step) AS last FROM checkpoints GROUP BY run) c USING (run)
    WHERE d.scope = 'model'
        AND (r.run GLOB 'width--*' OR r.run GLOB 'attention--*' OR r.run GLOB 'schedule--*--warmup-0.05--*')
)
SELECT study, network, width, schedule, count(*) AS runs, round(avg(saturation), 3) AS saturation,
    round(stddev_samp(saturation) / sqrt(count(*)), 3) AS stderr, round(avg(of_walk), 3) AS of_walk,
    round(avg(settled), 3) AS settled, round(avg(settled_of_walk), 3) AS settled_of_walk
FROM shares
GROUP BY study, network, width, schedule
ORDER BY study, network, width, schedule
