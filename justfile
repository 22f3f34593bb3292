# What contributors type. `just --list` shows it.

# build the program
build:
    cargo build --release

# run all tests
test:
    cargo test --workspace

# what continuous integration runs
ci:
    bash .ci/run

# compare every component with the official code's answers
verify:
    cargo run --release --quiet -- verify fixtures/goldens/*.safetensors

# make fixtures and goldens anew (needs PyTorch)
fixtures:
    python3 reference/fixtures/make.py --output fixtures
