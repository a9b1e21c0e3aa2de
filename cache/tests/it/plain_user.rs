//! The same tests as a user who is not root, whom modes of files and directories bind, as in every service.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `nobody` on most systems; any that is not root would do.
const PLAIN: u32 = 65_534;

#[test]
fn all_of_it_holds_for_a_plain_user() {
    if !rustix::process::geteuid().is_root() {
        // Then all others just did.
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    let (program, temp) = (dir.path().join("it"), dir.path().join("tmp"));
    // Where it was built may be closed to others.
    std::fs::copy(std::env::current_exe().expect("this program"), &program).expect("copied");
    std::fs::create_dir(&temp).expect("dir");
    chown(&temp, Some(PLAIN), Some(PLAIN)).expect("chown");
    for path in [dir.path(), &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let mut tests = Command::new(&program);
    // Only root mounts a file system, and root just did.
    tests
        .args(["--skip", "plain_user", "--skip", "import::a_full_disk"])
        .env("TMPDIR", &temp)
        .current_dir(&temp)
        .uid(PLAIN)
        .gid(PLAIN);
    let ran = tests.output().expect("it runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}
