//! Embeddings that are read by hand are those that `serde_json` reads, and whatever it refuses, is refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::engine::provider::embeddings::parse_embeddings;
use millstream::engine::provider::vectors::{check_count, parse_vectors};

fuzz_target!(|body: &[u8]| {
    let (quick, slow) = (parse_vectors(body), parse_embeddings(body));
    let Ok(vectors) = quick else { return };
    let rows = vectors.inputs.len();
    assert!(check_count(&vectors, rows, body).is_ok());
    assert_eq!(vectors.numbers.len(), rows * vectors.dimensions);
    assert!(vectors.is_base64 || vectors.numbers.iter().all(|number| number.is_finite()));
    // The other reading is the stricter one in what is beside the vectors.
    let Ok(embeddings) = slow else { return };
    assert_eq!(embeddings.data.len(), rows);
    for (row, input) in vectors.numbers.chunks(vectors.dimensions.max(1)).zip(&vectors.inputs) {
        let same = &embeddings.data[*input as usize].vector;
        assert_eq!(same.len(), row.len());
        for (one, other) in row.iter().zip(same) {
            let other = *other as f32;
            // Rounded once or twice: at most one step apart.
            let is_near = one.to_bits() == other.to_bits() || one.to_bits().abs_diff(other.to_bits()) <= 1;
            assert!(is_near || (one.is_nan() && other.is_nan()), "{one} {other}");
        }
    }
});
