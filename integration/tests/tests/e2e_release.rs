//! Release builds contain nothing of the test bed: no failpoint, no machine made of files, no double.

use std::path::Path;

/// Names that only test builds and the programs of the test bed have.
const NAMES: [&str; 7] = [
    "KATA_SE_FAILPOINT",
    "KATA_SE_SYS_ROOT",
    "failpoint",
    "softuv",
    "qemu-double",
    "qemu_double",
    "double.json",
];

fn found(program: &Path) -> Vec<&'static str> {
    let bytes = std::fs::read(program).expect("program");
    let has = |name: &&str| bytes.windows(name.len()).any(|part| part == name.as_bytes());
    NAMES.into_iter().filter(has).collect()
}

#[test]
fn a_release_contains_nothing_of_the_test_bed() {
    for name in ["containerd-shim-kata-se-v2", "kata-se"] {
        assert_eq!(found(&harness::program(name)), Vec::<&str>::new(), "{name}");
    }
    let shim = found(&harness::test_program("containerd-shim-kata-se-v2"));
    assert_eq!(shim, ["KATA_SE_FAILPOINT", "KATA_SE_SYS_ROOT", "failpoint"], "a test build has the names");
    assert!(found(&harness::test_program("kata-se")).contains(&"KATA_SE_SYS_ROOT"));
    assert!(found(&harness::test_program("qemu-softuv")).contains(&"softuv"));
}
