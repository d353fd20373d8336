//! The life of the process.
fn main() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let p = smp_agent::probe::Probes::attach(&smp_agent::probe::Options {
        max_proxies: 64,
        without: std::env::args().skip(1).collect(),
    })
    .unwrap();
    for r in p.runs() {
        println!("{r:?}");
    }
    p.measures_hops().unwrap();
}
