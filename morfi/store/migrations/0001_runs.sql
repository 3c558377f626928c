-- Facts are only ever added. Times are UTC without a zone, so that reading them needs no time-zone package.
CREATE TABLE run (
    run_id VARCHAR PRIMARY KEY,
    kind VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL,
    fingerprint VARCHAR NOT NULL,
    config JSON NOT NULL,
    ckpt VARCHAR NOT NULL,
    ckpt_sha256 VARCHAR NOT NULL,
    base VARCHAR,
    base_sha256 VARCHAR,
    adapter_sha256 VARCHAR,
    data VARCHAR NOT NULL,
    data_sha256 VARCHAR NOT NULL,
    prompt VARCHAR NOT NULL,
    bos BOOLEAN NOT NULL,
    seed BIGINT NOT NULL,
    n_planned BIGINT NOT NULL
);

-- One row each time a process works on a run. A process that is killed leaves no attempt_end.
CREATE TABLE attempt (
    run_id VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    started_at TIMESTAMP NOT NULL,
    command VARCHAR NOT NULL,
    pid BIGINT NOT NULL,
    host VARCHAR NOT NULL,
    morfi_version VARCHAR NOT NULL,
    git_commit VARCHAR,
    versions JSON NOT NULL,
    device VARCHAR NOT NULL,
    engine JSON NOT NULL,
    PRIMARY KEY (run_id, attempt)
);

CREATE TABLE attempt_end (
    run_id VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    ended_at TIMESTAMP NOT NULL,
    status VARCHAR NOT NULL CHECK (status IN ('done', 'interrupted', 'failed')),
    wall_s DOUBLE NOT NULL,
    generate_s DOUBLE NOT NULL,
    n_requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    message VARCHAR,
    PRIMARY KEY (run_id, attempt)
);

CREATE TABLE question (
    data_sha256 VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    relation VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    answers VARCHAR[] NOT NULL,
    PRIMARY KEY (data_sha256, question_id)
);

CREATE TABLE completion (
    run_id VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    sample INTEGER NOT NULL,
    prompt VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    answer VARCHAR NOT NULL,
    finish_reason VARCHAR NOT NULL,
    correct BOOLEAN NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    PRIMARY KEY (run_id, question_id, sample)
);

-- Wilson 95 % bounds; 3.84... is the square of the normal quantile 1.959963984540054.
CREATE MACRO wilson_low(k, n) AS CASE WHEN k = 0 THEN 0e0 ELSE
    (k + 1.920729410347062e0 - 1.959963984540054e0 * sqrt(k * (n - k) / n + 0.960364705173531e0))
    / (n + 3.841458820694124e0) END;
CREATE MACRO wilson_high(k, n) AS CASE WHEN k = n THEN 1e0 ELSE
    (k + 1.920729410347062e0 + 1.959963984540054e0 * sqrt(k * (n - k) / n + 0.960364705173531e0))
    / (n + 3.841458820694124e0) END;

CREATE VIEW samples AS
SELECT c.run_id, c.question_id, c.sample, q.relation, q.subject, q.question, q.answers,
    c.prompt, c.text, c.answer, c.finish_reason, c.correct,
    c.prompt_tokens, c.cached_tokens, c.output_tokens, c.attempt,
    r.ckpt, r.ckpt_sha256, r.data, r.data_sha256, r.seed
FROM completion c
JOIN run r ON r.run_id = c.run_id
JOIN question q ON q.data_sha256 = r.data_sha256 AND q.question_id = c.question_id;

-- Sample 0 only: further samples of a question are not independent of it, so Wilson would not hold.
CREATE VIEW accuracy AS
SELECT run_id, relation, n, n_correct, n_correct / n AS accuracy,
    wilson_low(n_correct, n) AS ci_low, wilson_high(n_correct, n) AS ci_high
FROM (
    SELECT run_id, relation, count(*) AS n, count_if(correct)::BIGINT AS n_correct
    FROM samples WHERE sample = 0 GROUP BY run_id, relation
);

-- A run whose last attempt has no end is 'running'; so is one whose process was killed.
CREATE VIEW runs AS
WITH answered AS (
    SELECT run_id, count(*) AS n_done, count_if(sample = 0)::BIGINT AS n,
        count_if(sample = 0 AND correct)::BIGINT AS n_correct
    FROM completion GROUP BY run_id
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
    CASE WHEN coalesce(d.n_done, 0) >= r.n_planned THEN 'done'
        ELSE coalesce(w.last_status, 'interrupted') END AS status,
    r.ckpt, r.ckpt_sha256, r.base, r.data, r.data_sha256, r.seed, r.n_planned,
    coalesce(d.n_done, 0) AS n_done, coalesce(d.n, 0) AS n, coalesce(d.n_correct, 0) AS n_correct,
    CASE WHEN d.n > 0 THEN d.n_correct / d.n END AS accuracy,
    CASE WHEN d.n > 0 THEN wilson_low(d.n_correct, d.n) END AS ci_low,
    CASE WHEN d.n > 0 THEN wilson_high(d.n_correct, d.n) END AS ci_high,
    coalesce(w.n_attempts, 0) AS n_attempts, coalesce(w.wall_s, 0) AS wall_s,
    coalesce(w.generate_s, 0) AS generate_s, coalesce(w.n_requests, 0) AS n_requests,
    coalesce(w.output_tokens, 0) AS output_tokens,
    CASE WHEN w.generate_s > 0 THEN w.n_requests / w.generate_s END AS requests_per_s
FROM run r
LEFT JOIN answered d ON d.run_id = r.run_id
LEFT JOIN worked w ON w.run_id = r.run_id;
