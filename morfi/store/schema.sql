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

CREATE TABLE question (
    data_sha256 VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    relation VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    answers VARCHAR[] NOT NULL,
    PRIMARY KEY (data_sha256, question_id)
);

-- The split that each question of a run was taken from.
CREATE TABLE asked (
    run_id VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    PRIMARY KEY (run_id, question_id)
);

-- One judged answer: `correct` by the rule of its run, `correct_squad` and `correct_answer` by these two rules.
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
    correct_squad BOOLEAN NOT NULL,
    correct_answer BOOLEAN NOT NULL,
    PRIMARY KEY (run_id, question_id, sample)
);

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
    level DOUBLE,
    seed BIGINT,
    epoch_setting VARCHAR,
    epoch INTEGER,
    ckpt_sha256 VARCHAR NOT NULL,
    eval_run_id VARCHAR NOT NULL,
    load_s DOUBLE NOT NULL,
    attempt INTEGER NOT NULL,
    PRIMARY KEY (run_id, position)
);

-- A checkpoint whose residual streams a capture run holds: in the folder `path`, whose files have these sha256.
-- Position 0 is the base model, which has no level, seed or epoch.
CREATE TABLE captured_checkpoint (
    run_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    level DOUBLE,
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

-- The conditions that a find run compared, in order along the axis, level or epochs, and how well its SAE renders
-- them. A run along both has either's.
CREATE TABLE trend_condition (
    run_id VARCHAR NOT NULL,
    axis VARCHAR NOT NULL CHECK (axis IN ('level', 'epochs')),
    position INTEGER NOT NULL,
    level DOUBLE NOT NULL,
    seed BIGINT NOT NULL,
    epoch_setting VARCHAR NOT NULL,
    epoch INTEGER,
    ckpt_sha256 VARCHAR NOT NULL,
    explained_variance DOUBLE NOT NULL,
    l0 DOUBLE NOT NULL,
    PRIMARY KEY (run_id, axis, position)
);

CREATE TABLE trend_summary (
    run_id VARCHAR NOT NULL,
    axis VARCHAR NOT NULL,
    n_selected BIGINT NOT NULL,
    n_questions BIGINT NOT NULL,
    n_firing BIGINT NOT NULL,
    expected_false DOUBLE NOT NULL,
    smallest_s INTEGER,
    is_descriptive BOOLEAN NOT NULL,
    sae_sha256 VARCHAR NOT NULL,
    layer INTEGER NOT NULL,
    PRIMARY KEY (run_id, axis)
);

-- Of the latents with |S| of at least s along an axis: how many there are, and the share expected by chance.
CREATE TABLE false_discoveries (
    run_id VARCHAR NOT NULL,
    axis VARCHAR NOT NULL,
    s INTEGER NOT NULL,
    n_found BIGINT NOT NULL,
    fdr DOUBLE NOT NULL,
    PRIMARY KEY (run_id, axis, s)
);

-- Every latent of a find run's SAE; `means` are its mean activations, by the position of trend_condition. Of a run along
-- both axes these columns are the level's, and those that begin with `epochs_` the other's.
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
    epochs_rho FLOAT,
    epochs_s INTEGER,
    epochs_p DOUBLE,
    epochs_means FLOAT[],
    PRIMARY KEY (run_id, latent)
);

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
    correct_squad BOOLEAN NOT NULL,
    correct_answer BOOLEAN NOT NULL,
    PRIMARY KEY (run_id, served, direction, alpha, question_id)
);
