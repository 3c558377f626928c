-- What a steer run steers along. `kind` is latent, control, random, delta_u, combined or scan (delta_u at another
-- layer); alphas are in units of `median_norm`. `parts` are the alphas of the latents that are combined.
CREATE TABLE steer_direction (
    run_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    direction VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    latent INTEGER,
    layer INTEGER NOT NULL,
    operation VARCHAR NOT NULL,
    median_norm DOUBLE NOT NULL,
    trend TINYINT NOT NULL,
    s INTEGER,
    firing DOUBLE,
    parts JSON NOT NULL,
    PRIMARY KEY (run_id, direction)
);

-- One judged answer. `served` is checkpoint, reference or base; unsteered answers have the direction '' and the
-- alpha 0. For clamp alpha is the latent's value; ablate and project have the alpha 0.
CREATE TABLE steered_answer (
    run_id VARCHAR NOT NULL,
    served VARCHAR NOT NULL CHECK (served IN ('checkpoint', 'reference', 'base')),
    direction VARCHAR NOT NULL,
    alpha DOUBLE NOT NULL,
    question_id VARCHAR NOT NULL,
    strength DOUBLE NOT NULL,
    text VARCHAR NOT NULL,
    answer VARCHAR NOT NULL,
    finish_reason VARCHAR NOT NULL,
    correct BOOLEAN NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    steered_tokens INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    PRIMARY KEY (run_id, served, direction, alpha, question_id)
);

CREATE VIEW steer_accuracy AS
SELECT *, n_correct / n AS accuracy, wilson_low(n_correct, n) AS ci_low, wilson_high(n_correct, n) AS ci_high
FROM (
    SELECT s.run_id, s.served, s.direction, s.alpha, a.split, count(*) AS n,
        count_if(s.correct)::BIGINT AS n_correct
    FROM steered_answer s JOIN asked a ON a.run_id = s.run_id AND a.question_id = s.question_id
    GROUP BY ALL
);

-- As before, with steered answers counted too.
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
), worked AS (
    SELECT a.run_id, count(*) AS n_attempts,
        coalesce(arg_max(coalesce(e.status, 'running'), a.attempt), 'running') AS last_status,
        coalesce(sum(e.wall_s), 0) AS wall_s, coalesce(sum(e.generate_s), 0) AS generate_s,
        coalesce(sum(e.n_requests), 0)::BIGINT AS n_requests,
        coalesce(sum(e.output_tokens), 0)::BIGINT AS output_tokens
    FROM attempt a LEFT JOIN attempt_end e ON e.run_id = a.run_id AND e.attempt = a.attempt
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
