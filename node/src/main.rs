//! The `weighlock` program.

fn main() -> std::process::ExitCode {
    // Before anything starts a thread: this command enters namespaces.
    if std::env::args_os().nth(1).is_some_and(|command| command == "__sandbox") {
        return weighlock::sandbox::enter();
    }
    weighlock::cli::main()
}
