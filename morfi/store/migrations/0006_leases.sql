-- Which process works on a run. The one table whose rows change: the process renews its row, and takes it away
-- when its attempt ends. A process that is killed leaves its row, which then runs out.
CREATE TABLE lease (
    run_id VARCHAR PRIMARY KEY,
    attempt INTEGER NOT NULL,
    host VARCHAR NOT NULL,
    pid BIGINT NOT NULL,
    process VARCHAR, -- boot, PID namespace and start of the process, where the system tells them
    since TIMESTAMP NOT NULL,
    renewed_at TIMESTAMP NOT NULL,
    expires_at TIMESTAMP NOT NULL
);

-- As before, but a run whose last attempt has no end is 'running' only while its lease lasts, else 'interrupted'.
-- A lease from further ahead than its own length was written by a wrong clock, and counts as run out.
CREATE OR REPLACE VIEW runs AS
WITH answered AS (
    SELECT run_id, count(*) AS n_done, count_if(sample = 0)::BIGINT AS n,
        count_if(sample = 0 AND correct)::BIGINT AS n_correct
    FROM completion GROUP BY run_id
), made AS (
    SELECT run_id, count(*) AS n_done FROM mixture GROUP BY run_id
    UNION ALL SELECT run_id, count(*) FROM checkpoint GROUP BY run_id
    UNION ALL SELECT run_id, count(*) FROM sweep_checkpoint GROUP BY run_id
    UNION ALL SELECT run_id, count(*) FROM captured_checkpoint GROUP BY run_id
    UNION ALL SELECT run_id, count(*) FROM latent_trend GROUP BY run_id
    UNION ALL SELECT run_id, count(*) FROM steered_answer GROUP BY run_id
), leased AS (
    SELECT run_id, attempt FROM lease
    WHERE epoch_us(expires_at) > epoch_us(now())
        AND epoch_us(renewed_at) - (epoch_us(expires_at) - epoch_us(renewed_at)) < epoch_us(now())
), worked AS (
    SELECT a.run_id, count(*) AS n_attempts,
        arg_max(coalesce(e.status, CASE WHEN l.run_id IS NULL THEN 'interrupted' ELSE 'running' END), a.attempt)
            AS last_status,
        coalesce(sum(e.wall_s), 0) AS wall_s, coalesce(sum(e.generate_s), 0) AS generate_s,
        coalesce(sum(e.n_requests), 0)::BIGINT AS n_requests,
        coalesce(sum(e.output_tokens), 0)::BIGINT AS output_tokens
    FROM attempt a
    LEFT JOIN attempt_end e ON e.run_id = a.run_id AND e.attempt = a.attempt
    LEFT JOIN leased l ON l.run_id = a.run_id AND l.attempt = a.attempt
    GROUP BY a.run_id
)
SELECT r.run_id, r.kind, r.created_at,
    CASE WHEN coalesce(d.n_done, m.n_done, 0) >= r.n_planned THEN 'done'
        ELSE coalesce(w.last_status, 'interrupted') END AS status,
    r.ckpt, r.ckpt_sha256, r.base, r.data, r.data_sha256, r.seed, r.n_planned,
    coalesce(d.n_done, m.n_done, 0) AS n_done, coalesce(d.n, 0) AS n, coalesce(d.n_correct, 0) AS n_correct,
    CASE WHEN d.n > 0 THEN d.n_correct / d.n END AS accuracy,
    CASE WHEN d.n > 0 THEN wilson_low(d.n_correct, d.n) END AS ci_low,
    CASE WHEN d.n > 0 THEN wilson_high(d.n_correct, d.n) END AS ci_high,
    coalesce(w.n_attempts, 0) AS n_attempts, coalesce(w.wall_s, 0) AS wall_s,
    coalesce(w.generate_s, 0) AS generate_s, coalesce(w.n_requests, 0) AS n_requests,
    coalesce(w.output_tokens, 0) AS output_tokens,
    CASE WHEN w.generate_s > 0 THEN w.n_requests / w.generate_s END AS requests_per_s
FROM run r
LEFT JOIN answered d ON d.run_id = r.run_id
LEFT JOIN made m ON m.run_id = r.run_id
LEFT JOIN worked w ON w.run_id = r.run_id;
