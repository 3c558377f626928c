-- A checkpoint whose residual streams a capture run holds: in the folder `path`, whose files have these sha256.
-- Position 0 is the base model, which has no level, seed or epoch.
CREATE TABLE captured_checkpoint (
    run_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    level INTEGER,
    seed BIGINT,
    epoch_setting VARCHAR,
    epoch INTEGER,
    ckpt_sha256 VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    files JSON NOT NULL,
    load_s DOUBLE NOT NULL,
    capture_s DOUBLE NOT NULL,
    attempt INTEGER NOT NULL,
    PRIMARY KEY (run_id, position)
);

-- The conditions that a find run compared, in order of level and seed, and how well its SAE renders them.
CREATE TABLE trend_condition (
    run_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    level INTEGER NOT NULL,
    seed BIGINT NOT NULL,
    ckpt_sha256 VARCHAR NOT NULL,
    explained_variance DOUBLE NOT NULL,
    l0 DOUBLE NOT NULL,
    PRIMARY KEY (run_id, position)
);

CREATE TABLE trend_summary (
    run_id VARCHAR NOT NULL PRIMARY KEY,
    n_questions BIGINT NOT NULL,
    n_firing BIGINT NOT NULL,
    expected_false DOUBLE NOT NULL,
    is_descriptive BOOLEAN NOT NULL,
    sae_sha256 VARCHAR NOT NULL,
    layer INTEGER NOT NULL
);

-- Of the latents with |S| of at least s: how many there are, and the share expected by chance.
CREATE TABLE false_discoveries (
    run_id VARCHAR NOT NULL,
    s INTEGER NOT NULL,
    n_found BIGINT NOT NULL,
    fdr DOUBLE NOT NULL,
    PRIMARY KEY (run_id, s)
);

-- Every latent of a find run's SAE; `means` are its mean activations, by the position of trend_condition.
CREATE TABLE latent_trend (
    run_id VARCHAR NOT NULL,
    latent INTEGER NOT NULL,
    direction TINYINT NOT NULL,
    rho FLOAT NOT NULL,
    s INTEGER NOT NULL,
    p_exact DOUBLE NOT NULL,
    slope FLOAT NOT NULL,
    score FLOAT NOT NULL,
    stability FLOAT,
    mean_abs_rho FLOAT,
    page_z DOUBLE,
    page_p DOUBLE,
    firing FLOAT NOT NULL,
    selected BOOLEAN NOT NULL,
    means FLOAT[] NOT NULL,
    PRIMARY KEY (run_id, latent)
);

-- As before, with captures and trends counted too.
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
