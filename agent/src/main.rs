//! The life of the process: read the command line, log, run the verb, exit with its code.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use smp_agent::cli::{Cli, EXIT_USAGE};
use tracing_subscriber::EnvFilter;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors.
            let code = if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
            // Nothing is left to do where even this cannot be printed.
            let _printed = error.print();
            return code;
        }
    };
    // kube says each failure each time; here it is said once.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,kube_client=off,kube_runtime=off,smp_agent=info"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(filter)
        .init();
    cli.run().await
}
