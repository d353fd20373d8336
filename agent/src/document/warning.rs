//! What a reader must know before the numbers.

use crate::histogram::Histogram;
use crate::kubernetes::{Cluster, Source};
use crate::probe::Verdict;
use crate::window::{ProxyWindow, UnixConnections, Window};

/// Share of messages without a latency from which a result says so on top.
const UNACCOUNTED_SHARE: f64 = 0.01;

/// One sentence per thing, the gravest first.
pub(super) fn of(window: &Window, kubernetes: Option<&Cluster>) -> Vec<String> {
    let mut warnings = Vec::new();
    if window.proxies.is_empty() {
        warnings.push("no proxy was found on this node: name one with --proxy PID|NAME".to_owned());
    } else if window.proxies.iter().all(|proxy| proxy.matching.seen == 0) {
        warnings.push(
            "no message crossed a proxy in the window: check that the load goes through the proxies listed"
                .to_owned(),
        );
    }
    warnings.extend(window.programs.iter().filter_map(|run| match &run.verdict {
        Verdict::Failed(reason) => {
            Some(format!("program {} on {} is not attached: {reason}", run.program, run.hook))
        }
        _ => None,
    }));
    let mut given_up: Vec<&str> = window
        .programs
        .iter()
        .filter_map(|run| match &run.verdict {
            Verdict::GivenUp(reason) => Some(reason.as_str()),
            _ => None,
        })
        .collect();
    given_up.dedup();
    warnings.extend(given_up.into_iter().map(str::to_owned));
    warnings.extend(window.proxies.iter().filter_map(unaccounted));
    warnings.extend(window.proxies.iter().filter_map(over_unix));
    warnings.extend(window.programs.iter().filter(|run| run.missed > 0).map(|run| {
        let share = 100.0 * run.missed as f64 / (run.missed + run.run_count) as f64;
        format!(
            "program {} on {} was skipped {} times ({share:.3} % of its events): stamps are missing, \
             messages may be unmatched",
            run.program, run.hook, run.missed
        )
    }));
    warnings.extend(window.proxies.iter().filter_map(clamped));
    // Of a pod, but not from the API server.
    let nameless = |proxy: &ProxyWindow| {
        proxy.proxy.container.pod_uid.is_some()
            && proxy.proxy.pod.as_ref().is_none_or(|pod| pod.source != Source::Api)
    };
    if window.proxies.iter().any(nameless) {
        warnings.extend(kubernetes.and_then(|cluster| cluster.trouble.clone()));
    }
    warnings
}

fn unaccounted(proxy_window: &ProxyWindow) -> Option<String> {
    let matching = &proxy_window.matching;
    let share = matching.unaccounted_share().filter(|&share| share > UNACCOUNTED_SHARE)?;
    let lost: Vec<_> =
        matching.lost.iter().map(|(reason, count)| format!(", {count} lost ({reason})")).collect();
    Some(format!(
        "{} (pid {}): {:.1} % of {} messages have no latency: {} unmatched{}; the latencies are those of the rest",
        proxy_window.proxy.name,
        proxy_window.proxy.pid,
        100.0 * share,
        matching.seen,
        matching.unmatched,
        lost.concat()
    ))
}

fn over_unix(proxy_window: &ProxyWindow) -> Option<String> {
    let UnixConnections { downstream, upstream } = proxy_window.unix;
    (!proxy_window.unix.is_empty()).then(|| {
        format!(
            "{} (pid {}) has connections over Unix-domain sockets, which are not measured: {downstream} from clients, \
             {upstream} to servers (the most at one look); what crosses between one of them and TCP counts as local",
            proxy_window.proxy.name, proxy_window.proxy.pid
        )
    })
}

fn clamped(proxy_window: &ProxyWindow) -> Option<String> {
    let clamped: u64 = proxy_window.hops.iter().map(Histogram::clamped).sum();
    (clamped > 0).then(|| {
        format!(
            "{} (pid {}): {clamped} samples above 60 s are counted as 60 s in percentiles and hdr",
            proxy_window.proxy.name, proxy_window.proxy.pid
        )
    })
}
