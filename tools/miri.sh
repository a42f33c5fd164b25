#!/usr/bin/env bash
# The unit tests of the pure parts of the engine under Miri: whatever their dependencies do unsafely is checked as it runs.
# Left out: whatever needs a socket, a file, a clock or foreign code (ring, SQLite), and property tests, which take hours there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MIRIFLAGS="-Zmiri-disable-isolation ${MIRIFLAGS:-}" PROPTEST_CASES="${PROPTEST_CASES:-2}"
PURE=(
    engine::sse:: engine::provider:: engine::canonical:: engine::jobs::lines:: engine::jobs::input:: engine::jobs::usual::
    engine::limit::bucket:: engine::limit::line:: engine::limit::window_log:: engine::limit::cost:: engine::retry::backoff::
    engine::tokens:: engine::multipart:: engine::embed::block:: engine::embed::pack:: engine::embed::piece:: engine::error::
)
# Property tests of a thousand cases.
LONG=(
    any_cut_of_a_stream_gives_the_same_events reads_what_another_decoder_reads gives_only_valid_utf8
)
exec cargo +nightly miri test --locked --no-default-features --lib -- "${PURE[@]}" "${LONG[@]/#/--skip=}" "$@"
