//! Whatever an output has become, it is refused and left as it is, or every line that is left is whole and none that was whole is
//! lost; and going on once more changes nothing.
//!
//! The first byte says whether failed items are asked again, the rest is the file.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use millstream::engine::jobs::fuzzing::{is_answered, repair};

/// In memory where there is such a folder: a file is written with every input.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = base.join(format!("millstream-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
});

fn lines(file: &[u8]) -> Vec<&[u8]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end).filter(|line| !line.is_empty()).collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((first, output)) = input.split_first() else { return };
    let retry_failed = first % 2 == 1;
    let path = FOLDER.join("out");
    let _ = std::fs::remove_file(FOLDER.join("out.corrupt"));
    let repaired = repair(&path, output, retry_failed);
    let stays = |line: &&[u8]| is_answered(line).is_some_and(|is_ok| is_ok || !retry_failed);
    match repaired {
        Err(_) => {
            assert_eq!(std::fs::read(&path).unwrap(), output);
            assert!(!lines(output).iter().any(stays), "a file with results was refused");
        }
        Ok((now, _)) => {
            assert!(now.is_empty() || now.ends_with(b"\n"));
            let kept: Vec<_> = lines(output).into_iter().filter(stays).collect();
            assert_eq!(lines(&now), kept);
            assert_eq!(repair(&path, &now, retry_failed).unwrap(), (now.clone(), 0));
        }
    }
});
