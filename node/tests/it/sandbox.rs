//! Real evaluators in real sandboxes: as this user and, where this one is the superuser, as nobody; with everything
//! that the host offers and with the namespaces left out.

mod confinement;
mod input;
mod leftovers;
mod limits;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use weighlock::sandbox::*;

/// Names the role that this test binary plays when it is started again.
const ROLE: &str = "SANDBOX_ROLE";
const WEIGHLOCK: &str = env!("CARGO_BIN_EXE_weighlock");
const NOBODY: u32 = 65534;

/// Not a test of its own: where this binary is started again, as a supervisor or an evaluator. A plain run has no role
/// and passes.
#[test]
fn reenter() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let code = match role.split_once(' ') {
        Some(("run", file)) => supervise(Path::new(file)),
        Some(("act", act)) => confinement::act(act),
        _ => 99,
    };
    std::process::exit(code);
}

/// What a supervisor of its own process is told.
#[derive(Serialize, Deserialize)]
struct Order {
    command: Vec<String>,
    model: PathBuf,
    work: PathBuf,
    hidden: Vec<PathBuf>,
    devices: Vec<PathBuf>,
    env: Vec<String>,
    limits: SandboxLimits,
    without: BTreeSet<Means>,
    full: bool,
}

impl Order {
    fn spec(self) -> Spec {
        Spec {
            hidden: self.hidden,
            devices: self.devices,
            env: self.env,
            limits: self.limits,
            without: self.without,
            require: if self.full { Require::Full } else { Require::Best },
            // Of the real program: the stages must have one thread, and test harnesses have more.
            reenter: Reenter { program: WEIGHLOCK.into(), ..Reenter::default() },
            cwd: "/".into(),
            ..Spec::new(self.command, self.model, self.work)
        }
    }
}

fn supervise(file: &Path) -> i32 {
    let order: Order = serde_json::from_slice(&fs::read(file).expect("order")).expect("order");
    let done = run(&order.spec(), &mut |_| {}).map_err(|e| e.to_string());
    fs::write(file.with_extension("done"), serde_json::to_vec(&done).expect("json")).expect("written");
    0
}

/// Who runs an evaluator, and with what.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// This user, everything that there is.
    Full,
    /// This user, on a host without namespaces.
    Swept,
    /// Nobody, everything that there is.
    Nobody,
    /// Nobody, on a host without namespaces.
    NobodySwept,
}

fn modes() -> Vec<Mode> {
    let mut modes = vec![Mode::Full, Mode::Swept];
    // Nobody must be able to run this binary, wherever it was built.
    let reachable = |program: &Path| {
        let mut command = Command::new(program);
        command.arg("--help").uid(NOBODY).gid(NOBODY).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let programs = [std::env::current_exe().expect("this binary"), WEIGHLOCK.into()];
    if rustix::process::geteuid().is_root() && programs.iter().all(|program| reachable(program)) {
        modes.extend([Mode::Nobody, Mode::NobodySwept]);
    }
    modes
}

impl Mode {
    fn nobody(self) -> bool {
        matches!(self, Mode::Nobody | Mode::NobodySwept)
    }

    fn swept(self) -> bool {
        matches!(self, Mode::Swept | Mode::NobodySwept)
    }
}

/// A directory with a model, and an order to change before it runs.
struct Bench {
    dir: tempfile::TempDir,
    order: Order,
    mode: Mode,
    /// In the command line of whatever the evaluator starts, so that it can be found again.
    token: String,
}

impl Bench {
    fn new(mode: Mode, command: &str) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("opened to all");
        let model = dir.path().join("the model's \"dir\"");
        fs::create_dir(&model).expect("made");
        fs::write(model.join("weights"), "weights").expect("written");
        // Writable by all, so that only the sandbox stands between.
        fs::set_permissions(&model, Permissions::from_mode(0o777)).expect("opened to all");
        fs::set_permissions(model.join("weights"), Permissions::from_mode(0o666)).expect("opened to all");
        let name = dir.path().file_name().expect("a name").to_string_lossy().into_owned();
        let token = format!("T0KEN{}", name.trim_start_matches("."));
        let mut without = BTreeSet::new();
        if mode.swept() {
            without.extend([
                Means::UserNamespace,
                Means::PidNamespace,
                Means::MountNamespace,
                Means::NetNamespace,
            ]);
        }
        let order = Order {
            command: split(command).expect("a command"),
            model,
            work: dir.path().join("work"),
            hidden: Vec::new(),
            devices: Vec::new(),
            env: vec![format!("TOKEN={token}")],
            limits: SandboxLimits { wall_seconds: 120, ..SandboxLimits::default() },
            without,
            full: false,
        };
        Self { dir, order, mode, token }
    }

    /// An evaluator that is a shell script.
    fn sh(mode: Mode, script: &str) -> Self {
        let mut bench = Self::new(mode, "sh -c SCRIPT TOKEN {path} {out}");
        bench.order.command[2] = script.to_owned();
        bench.order.command[3] = bench.token.clone();
        bench
    }

    /// An evaluator that is this binary, see [`confinement::act`].
    fn act(mode: Mode, act: &str) -> Self {
        let mut bench = Self::new(mode, "EXE --exact sandbox::reenter --test-threads=1 --nocapture");
        let exe = std::env::current_exe().expect("this binary");
        bench.order.command[0] = exe.to_str().expect("a path").to_owned();
        bench.order.env.push(format!("{ROLE}=act {act}"));
        bench
    }

    fn run(&self) -> Result<Outcome, String> {
        let mut supervisor = self.start();
        supervisor.wait().expect("ended");
        let done = fs::read(self.dir.path().join("order.done")).expect("the supervisor wrote how it went");
        serde_json::from_slice(&done).expect("json")
    }

    /// A run that must come to an outcome and leave no process.
    fn outcome(&self) -> Outcome {
        let outcome = self.run().unwrap_or_else(|e| panic!("{:?}: {e}", self.mode));
        assert_eq!(self.left(), [0; 0], "{:?}: processes are left", self.mode);
        assert!(!self.order.work.join("tmp").exists(), "{:?}: the temporary directory is left", self.mode);
        outcome
    }

    /// Starts a supervisor in a process of its own, as the mode's user.
    fn start(&self) -> Child {
        let file = self.dir.path().join("order.json");
        fs::write(&file, serde_json::to_vec(&self.order).expect("json")).expect("written");
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--exact", "sandbox::reenter", "--test-threads=1", "--nocapture"])
            .env(ROLE, format!("run {}", file.display()))
            .env("A_SECRET", "secret")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if self.mode.nobody() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.spawn().expect("started")
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.order.work.join("log")).expect("a log")).into_owned()
    }

    /// Processes that have the token in their command line, the supervisor's order aside.
    fn left(&self) -> Vec<u32> {
        let pids = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let has = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&self.token)
        };
        pids.filter(has).collect()
    }
}

/// Waits for something that another process does.
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !happened() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
