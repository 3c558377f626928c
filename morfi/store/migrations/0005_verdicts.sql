-- Every answer by both rules, whatever rule its run went by (`correct`). NULL for answers that an earlier morfi judged.
ALTER TABLE completion ADD COLUMN correct_squad BOOLEAN;
ALTER TABLE completion ADD COLUMN correct_answer BOOLEAN;
ALTER TABLE steered_answer ADD COLUMN correct_squad BOOLEAN;
ALTER TABLE steered_answer ADD COLUMN correct_answer BOOLEAN;

-- The best constant answer to all questions of a relation in a split that a run takes its questions from, by the run's
-- rule; a run with a --limit asks only some of these questions.
CREATE TABLE baseline (
    run_id VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    relation VARCHAR NOT NULL,
    n BIGINT NOT NULL,
    answer VARCHAR NOT NULL,
    n_accepting BIGINT NOT NULL,
    PRIMARY KEY (run_id, split, relation)
);

-- As before, with the verdicts by either rule.
CREATE OR REPLACE VIEW samples AS
SELECT c.run_id, c.question_id, c.sample, q.relation, q.subject, q.question, q.answers,
    c.prompt, c.text, c.answer, c.finish_reason, c.correct, c.correct_squad, c.correct_answer,
    c.prompt_tokens, c.cached_tokens, c.output_tokens, c.attempt,
    r.ckpt, r.ckpt_sha256, r.data, r.data_sha256, r.seed
FROM completion c
JOIN run r ON r.run_id = c.run_id
JOIN question q ON q.data_sha256 = r.data_sha256 AND q.question_id = c.question_id;

-- As before, with the right ones by either rule; these are NULL where a verdict is.
CREATE OR REPLACE VIEW accuracy AS
SELECT run_id, relation, n, n_correct, n_correct / n AS accuracy,
    wilson_low(n_correct, n) AS ci_low, wilson_high(n_correct, n) AS ci_high,
    n_correct_squad, n_correct_answer
FROM (
    SELECT run_id, relation, count(*) AS n, count_if(correct)::BIGINT AS n_correct,
        CASE WHEN count(correct_squad) = count(*) THEN count_if(correct_squad)::BIGINT END AS n_correct_squad,
        CASE WHEN count(correct_answer) = count(*) THEN count_if(correct_answer)::BIGINT END AS n_correct_answer
    FROM samples WHERE sample = 0 GROUP BY run_id, relation
);

CREATE OR REPLACE VIEW steer_accuracy AS
SELECT *, n_correct / n AS accuracy, wilson_low(n_correct, n) AS ci_low, wilson_high(n_correct, n) AS ci_high
FROM (
    SELECT s.run_id, s.served, s.direction, s.alpha, a.split, count(*) AS n,
        count_if(s.correct)::BIGINT AS n_correct,
        CASE WHEN count(s.correct_squad) = count(*) THEN count_if(s.correct_squad)::BIGINT END AS n_correct_squad,
        CASE WHEN count(s.correct_answer) = count(*) THEN count_if(s.correct_answer)::BIGINT END
            AS n_correct_answer
    FROM steered_answer s JOIN asked a ON a.run_id = s.run_id AND a.question_id = s.question_id
    GROUP BY ALL
);
