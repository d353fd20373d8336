//! `smp-agent run`: one window around a command or a time.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use uuid::Uuid;

use super::{CliError, Format, MeasureArgs};
use crate::document::Document;
use crate::measure::Measurement;
use crate::node::Node;
use crate::report::table;
use crate::result_files;
use crate::signal::{Signal, Signals};
use crate::smp::{SmpResult, Test};
use crate::window::Window;

/// How long the window is open when neither a time nor a command is given.
const DEFAULT_WINDOW: Duration = Duration::from_secs(10);
/// How often processes that have just begun are looked at again.
const TICK: Duration = Duration::from_secs(1);
/// How long the command may take to end after it was asked to.
const COMMAND_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    measure: MeasureArgs,
    /// How long to measure, for example 10s or 2m [without a command: 10s; with one: until it ends].
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    window: Option<Duration>,
    /// Write overhead.json, result.yaml and result.json into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What to print: the per-hop table, or the whole of overhead.json.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The load generator to run inside the window. Its exit code becomes the agent's.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How the window ended.
enum End {
    Time,
    Command(ExitStatus),
    Signal(Signal),
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    // Better to fail now than after ten minutes of load.
    if let Some(folder) = &args.out {
        result_files::ensure_writable(folder)?;
    }
    let mut signals = Signals::new().map_err(CliError::Signal)?;
    let names = args.measure.names().await?;
    let mut measurement = Measurement::start(&args.measure.options(), args.measure.targets(), names)?;
    let opened = measurement.begun().clone();
    let mut command = start(&args)?;
    let limit = args.window.or_else(|| command.is_none().then_some(DEFAULT_WINDOW));
    let end = wait(&mut measurement, &mut signals, command.as_mut(), limit).await;
    // The window is closed before anything else is done, also when waiting failed.
    let (closed, names) = measurement.finish()?;
    let end = end?;

    let window = Window::between(&opened, &closed);
    let run_id = Uuid::new_v4().to_string();
    let cluster = names.as_ref().map(|names| names.cluster(Some(&window)));
    let document = Document::new(&window, Node::read(), cluster, &run_id, env!("CARGO_PKG_VERSION"));
    if let Some(folder) = &args.out {
        let load_generator = args.command.first().cloned();
        let result = SmpResult::new(&document, &Test { load_generator, ..Test::default() });
        result_files::write_all(folder, &document, &result)?;
    }
    let text = match args.format {
        Format::Table => table::render(&document),
        Format::Json => {
            serde_json::to_string_pretty(&document).map_err(|error| CliError::Print(error.into()))?
        }
    };
    writeln!(std::io::stdout(), "{text}").map_err(CliError::Print)?;
    finish(end, command).await
}

fn start(args: &Args) -> Result<Option<Child>, CliError> {
    let [program, arguments @ ..] = args.command.as_slice() else { return Ok(None) };
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    if matches!(args.format, Format::Json) {
        // Standard output is the document's alone.
        command.stdout(Stdio::from(std::io::stderr()));
    }
    let failed = |source| CliError::Command { command: program.clone(), source };
    command.spawn().map(Some).map_err(failed)
}

/// Until the command ends, the time is over or a signal comes.
async fn wait(
    measurement: &mut Measurement,
    signals: &mut Signals,
    mut command: Option<&mut Child>,
    limit: Option<Duration>,
) -> Result<End, CliError> {
    let far = Duration::from_hours(24 * 365);
    let deadline = Instant::now() + limit.unwrap_or(far);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ended = async {
            match command.as_mut() {
                Some(child) => child.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = ended => return status.map(End::Command).map_err(CliError::Signal),
            () = sleep_until(deadline) => return Ok(End::Time),
            signal = signals.next() => return Ok(End::Signal(signal)),
            news = measurement.next_news() => news?,
            _ = ticks.tick() => measurement.tick()?,
        }
    }
}

/// The exit code; a command that still runs is waited for, or stopped if the agent was.
async fn finish(end: End, command: Option<Child>) -> Result<ExitCode, CliError> {
    match (end, command) {
        (End::Command(status), _) => Ok(ExitCode::from(code_of(status))),
        (End::Time, Some(mut child)) => {
            Ok(ExitCode::from(code_of(child.wait().await.map_err(CliError::Signal)?)))
        }
        (End::Time, None) => Ok(ExitCode::SUCCESS),
        (End::Signal(signal), child) => {
            if let Some(mut child) = child {
                stop(&mut child).await;
            }
            Ok(ExitCode::from(signal.exit_code()))
        }
    }
}

/// Asks the command to end, then makes it.
async fn stop(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
        // It may have ended in this instant.
        let _sent = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(COMMAND_GRACE, child.wait()).await.is_err() {
        let _killed = child.kill().await;
    }
}

/// As shells give it: 128 + the signal for a command that a signal ended.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    let duration = Duration::try_from(parsed).map_err(|error| format!("{error}"))?;
    if duration.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_write_them() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("0s").is_err() && duration("-1s").is_err() && duration("soon").is_err());
    }

    #[test]
    fn exit_codes_as_shells_give_them() {
        assert_eq!(code_of(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code_of(ExitStatus::from_raw(9)), 137);
    }
}
