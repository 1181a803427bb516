-- By how much queries, keys and values of a layer differ: hallmarks sql --store studies --file attention.sql
WITH layers AS (
    SELECT run, layer, max(value) - min(value) AS difference, max(null_value) - min(null_value) AS of_walks
    FROM indicators
    WHERE run GLOB 'attention--*' AND scope = 'layer_component' AND indicator = 'mds'
        AND component IN ('attn_q', 'attn_k', 'attn_v')
    GROUP BY run, layer
)
SELECT (r.settings->>'width')::INT AS width, l.layer, count(*) AS seeds, round(avg(difference), 3) AS difference,
    round(stddev_samp(difference) / sqrt(count(*)), 3) AS stderr, round(avg(of_walks), 3) AS of_walks
FROM layers l
JOIN runs r USING (run)
GROUP BY ALL
ORDER BY ALL
