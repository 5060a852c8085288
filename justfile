# The recipes a developer needs; `.ci/run` runs the same commands. `just` itself is optional: each line works alone.

# Compile everything, tests included, without building
check:
    cargo check --workspace --all-targets

# Every test; installs the foreign peers below target/ first
test *ARGS:
    cargo xtask test {{ARGS}}

# Formatting and clippy, as continuous integration runs them
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Licences, bans and sources of dependencies (needs cargo-deny)
deny:
    cargo deny check bans licenses sources

# Put the code into form
fmt:
    cargo fmt --all

# One hop and a pair with mTLS against Envoy and HAProxy
bench *ARGS:
    cargo build --release
    python3 bench/run.py {{ARGS}}

# Instructions per request (needs valgrind), beside the committed figures
instructions *ARGS:
    cargo xtask instructions {{ARGS}}

# What continuous integration runs
ci:
    .ci/run
