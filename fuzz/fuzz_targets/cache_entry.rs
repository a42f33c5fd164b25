//! Bytes of a store that have the right checksum, and those that have not, are an entry or none; an entry is kept as it is.
//!
//! The first byte is the form, the rest what is kept. The checksum is put before it here, or no input would come further.

#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::engine::cache::{Entry, Key};
use ring::digest::{Context, SHA256};

const KEY: [u8; 32] = [7; 32];
const FORMAT: u8 = 1;

fuzz_target!(|input: &[u8]| {
    let key = Key::from(KEY);
    assert_eq!(Entry::decode(&key, input), None);
    let Some((form, content)) = input.split_first() else { return };
    let form = form % 3;
    let mut hash = Context::new(&SHA256);
    hash.update(&KEY);
    hash.update(&[FORMAT, form]);
    hash.update(content);
    let stored = [&[FORMAT, form], &hash.finish().as_ref()[..16], content].concat();
    let Some(entry) = Entry::decode(&key, &stored) else { return };
    assert!(entry.status.is_success());
    assert_eq!(Entry::decode(&key, &entry.encode(&key)).as_ref(), Some(&entry));
    assert_eq!(Entry::decode(&Key::from([8; 32]), &stored), None);
});
