-- The split that each question of a run was taken from.
CREATE TABLE asked (
    run_id VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    PRIMARY KEY (run_id, question_id)
);

-- The training questions of each mixture D_level, level in percent Unknown.
CREATE TABLE mixture (
    run_id VARCHAR NOT NULL,
    level INTEGER NOT NULL,
    position INTEGER NOT NULL,
    question_id VARCHAR NOT NULL,
    category VARCHAR NOT NULL,
    PRIMARY KEY (run_id, level, position)
);

CREATE TABLE training_epoch (
    run_id VARCHAR NOT NULL,
    level INTEGER NOT NULL,
    seed BIGINT NOT NULL,
    epoch INTEGER NOT NULL,
    loss DOUBLE NOT NULL,
    n_steps INTEGER NOT NULL,
    n_dev INTEGER NOT NULL,
    n_dev_correct INTEGER NOT NULL,
    train_s DOUBLE NOT NULL,
    dev_s DOUBLE NOT NULL,
    attempt INTEGER NOT NULL,
    PRIMARY KEY (run_id, level, seed, epoch)
);

CREATE TABLE checkpoint (
    run_id VARCHAR NOT NULL,
    level INTEGER NOT NULL,
    seed BIGINT NOT NULL,
    epoch_setting VARCHAR NOT NULL,
    epoch INTEGER NOT NULL,
    path VARCHAR NOT NULL,
    adapter_sha256 VARCHAR NOT NULL,
    manifest JSON NOT NULL,
    attempt INTEGER NOT NULL,
    PRIMARY KEY (run_id, level, seed, epoch_setting)
);

-- Position 0 is the base model, which has no level, seed or epoch.
CREATE TABLE sweep_checkpoint (
    run_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    level INTEGER,
    seed BIGINT,
    epoch_setting VARCHAR,
    epoch INTEGER,
    ckpt_sha256 VARCHAR NOT NULL,
    eval_run_id VARCHAR NOT NULL,
    load_s DOUBLE NOT NULL,
    attempt INTEGER NOT NULL,
    PRIMARY KEY (run_id, position)
);

-- Categories of Gekhman et al. (arXiv 2405.05904). Each of the n_ex prompts of a question has its greedy answer
-- first, then its samples; a question that lacks some of them has no category yet.
CREATE VIEW knowledge AS
WITH setting AS (
    SELECT run_id, data_sha256, (config ->> 'n_ex')::INTEGER AS n_ex, (config ->> 'samples')::INTEGER AS samples
    FROM run WHERE kind = 'split'
), counted AS (
    SELECT s.run_id, s.data_sha256, c.question_id,
        avg(c.correct::INTEGER) FILTER (c.sample % (1 + s.samples) = 0) AS p_greedy,
        coalesce(avg(c.correct::INTEGER) FILTER (c.sample % (1 + s.samples) <> 0), 0) AS p_sampled
    FROM setting s JOIN completion c ON c.run_id = s.run_id
    GROUP BY s.run_id, s.data_sha256, s.n_ex, s.samples, c.question_id
    HAVING count(*) = s.n_ex * (1 + s.samples)
)
SELECT n.run_id, n.question_id, a.split, q.relation, q.subject, q.question, q.answers, n.p_greedy, n.p_sampled,
    CASE WHEN n.p_greedy = 1 THEN 'HighlyKnown' WHEN n.p_greedy > 0 THEN 'MaybeKnown'
        WHEN n.p_sampled > 0 THEN 'WeaklyKnown' ELSE 'Unknown' END AS category
FROM counted n
JOIN asked a ON a.run_id = n.run_id AND a.question_id = n.question_id
JOIN question q ON q.data_sha256 = n.data_sha256 AND q.question_id = n.question_id;

-- All seeds of a checkpoint together: their answers to one question are not independent, so with several
-- seeds the bounds are too narrow for a statement about training runs.
CREATE VIEW sweep_accuracy AS
SELECT *, n_correct / n AS accuracy, wilson_low(n_correct, n) AS ci_low, wilson_high(n_correct, n) AS ci_high
FROM (
    SELECT s.run_id, s.level, s.epoch_setting,
        a.split || CASE WHEN k.category = 'Unknown' THEN ' Unknown' ELSE ' Known' END AS questions,
        count(DISTINCT s.eval_run_id) AS n_seeds, count(*) AS n, count_if(c.correct)::BIGINT AS n_correct
    FROM sweep_checkpoint s
    JOIN run r ON r.run_id = s.run_id
    JOIN completion c ON c.run_id = s.eval_run_id AND c.sample = 0
    JOIN asked a ON a.run_id = c.run_id AND a.question_id = c.question_id
    JOIN knowledge k ON k.run_id = r.config ->> 'split_run' AND k.question_id = c.question_id
    GROUP BY s.run_id, s.level, s.epoch_setting, questions
);

-- As before, with what each kind of run makes counted in n_done: completions, mixture rows or checkpoints.
CREATE OR REPLACE VIEW runs AS
WITH answered AS (
    SELECT run_id, count(*) AS n_done, count_if(sample = 0)::BIGINT AS n,
        count_if(sample = 0 AND correct)::BIGINT AS n_correct
    FROM completion GROUP BY run_id
), made AS (
    SELECT run_id, count(*) AS n_done FROM mixture GROUP BY run_id
    UNION ALL SELECT run_id, count(*) FROM checkpoint GROUP BY run_id
    UNION ALL SELECT run_id, count(*) FROM sweep_checkpoint GROUP BY run_id
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
