//! Finds the program under test beside the test executable, and builds it where it is missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The `weighlock` of the profile that the tests were built with. `cargo test --workspace` builds it; a run of this
/// package alone takes the one that lies there, so build it first after changing it.
///
/// # Panics
/// It is missing and cannot be built.
pub fn weighlock() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let test = std::env::current_exe().expect("a running test knows its own path");
        // <target>/<profile>/deps/it-<hash>
        let profile =
            test.parent().and_then(Path::parent).expect("a test executable lies in <target>/<profile>/deps");
        let binary = profile.join("weighlock");
        if !binary.exists() {
            build(profile);
        }
        assert!(binary.exists(), "{} was not built", binary.display());
        binary
    })
}

/// The workspace's root directory.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace").to_owned()
}

/// Cargo, as the one that runs the tests names itself.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

fn build(profile: &Path) {
    let name = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target = profile.parent().expect("a profile directory lies in the target directory");
    let built = cargo()
        .args(["build", "--package", "weighlock", "--profile", name, "--target-dir"])
        .arg(target)
        .status()
        .expect("cargo runs");
    assert!(built.success(), "cargo build -p weighlock failed");
}
