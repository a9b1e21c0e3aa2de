//! The `weighlock` program.

fn main() -> std::process::ExitCode {
    weighlock::cli::main()
}
