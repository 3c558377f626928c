-- Made anew from this file whenever the tables change: a macro or view that is renamed must be dropped by a migration.

-- Wilson 95 % bounds; 3.84... is the square of the normal quantile 1.959963984540054.
CREATE OR REPLACE MACRO wilson_low(k, n) AS CASE WHEN k = 0 THEN 0e0 ELSE
    (k + 1.920729410347062e0 - 1.959963984540054e0 * sqrt(k * (n - k) / n + 0.960364705173531e0))
    / (n + 3.841458820694124e0) END;
CREATE OR REPLACE MACRO wilson_high(k, n) AS CASE WHEN k = n THEN 1e0 ELSE
    (k + 1.920729410347062e0 + 1.959963984540054e0 * sqrt(k * (n - k) / n + 0.960364705173531e0))
    / (n + 3.841458820694124e0) END;

CREATE OR REPLACE VIEW samples AS
SELECT c.run_id, c.question_id, c.sample, q.relation, q.subject, q.question, q.answers,
    c.prompt, c.text, c.answer, c.finish_reason, c.correct, c.correct_squad, c.correct_answer,
    c.prompt_tokens, c.cached_tokens, c.output_tokens, c.attempt,
    r.ckpt, r.ckpt_sha256, r.data, r.data_sha256, r.seed
FROM completion c
JOIN run r ON r.run_id = c.run_id
JOIN question q ON q.data_sha256 = r.data_sha256 AND q.question_id = c.question_id;

-- Sample 0 only: further samples of a question are not independent of it, so Wilson would not hold.
CREATE OR REPLACE VIEW accuracy AS
SELECT run_id, relation, n, n_correct, n_correct / n AS accuracy,
    wilson_low(n_correct, n) AS ci_low, wilson_high(n_correct, n) AS ci_high,
    n_correct_squad, n_correct_answer
FROM (
    SELECT run_id, relation, count(*) AS n, count_if(correct)::BIGINT AS n_correct,
        count_if(correct_squad)::BIGINT AS n_correct_squad, count_if(correct_answer)::BIGINT AS n_correct_answer
    FROM samples WHERE sample = 0 GROUP BY run_id, relation
);

-- Categories of Gekhman et al. (arXiv 2405.05904). Each of the n_ex prompts of a question has its greedy answer
-- first, then its samples; a question that lacks some of them has no category yet.
CREATE OR REPLACE VIEW knowledge AS
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
CREATE OR REPLACE VIEW sweep_accuracy AS
SELECT *, n_correct / n AS accuracy, wilson_low(n_correct, n) AS ci_low, wilson_high(n_correct, n) AS ci_high
FROM (
    SELECT s.run_id, s.level, s.epoch_setting,
        a.split || CASE WHEN k.category IS NULL THEN '' WHEN k.category = 'Unknown' THEN ' Unknown' ELSE ' Known' END
            AS questions,
        count(DISTINCT s.eval_run_id) AS n_seeds, count(*) AS n, count_if(c.correct)::BIGINT AS n_correct
    FROM sweep_checkpoint s
    JOIN run r ON r.run_id = s.run_id
    JOIN completion c ON c.run_id = s.eval_run_id AND c.sample = 0
    JOIN asked a ON a.run_id = c.run_id AND a.question_id = c.question_id
    LEFT JOIN knowledge k ON k.run_id = r.config ->> 'split_run' AND k.question_id = c.question_id
    WHERE k.category IS NOT NULL OR r.config ->> 'split_run' IS NULL
    GROUP BY s.run_id, s.level, s.epoch_setting, questions
);

CREATE OR REPLACE VIEW steer_accuracy AS
SELECT *, n_correct / n AS accuracy, wilson_low(n_correct, n) AS ci_low, wilson_high(n_correct, n) AS ci_high
FROM (
    SELECT s.run_id, s.served, s.direction, s.alpha, a.split, count(*) AS n,
        count_if(s.correct)::BIGINT AS n_correct,
        count_if(s.correct_squad)::BIGINT AS n_correct_squad,
        count_if(s.correct_answer)::BIGINT AS n_correct_answer
    FROM steered_answer s JOIN asked a ON a.run_id = s.run_id AND a.question_id = s.question_id
    GROUP BY ALL
);

-- `n_done` counts what a run of each kind makes. A run whose last attempt has no end is 'running' while its lease
-- lasts, else 'interrupted'.
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
