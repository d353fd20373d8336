//! Responses that were ended although they are still to be written.

use super::kernel::{Id, Kernel, Written};
use super::*;

/// What a client asks, its server is asked and answers at once: the tag of the response, and when it was read.
fn ask(kernel: &mut Kernel, (client, server): (Id, Id), now_ns: &mut u64) -> (u64, u64) {
    let mut tick = || {
        *now_ns += 1;
        *now_ns
    };
    let at = tick();
    kernel.read(client, 1, at, at).unwrap();
    assert!(matches!(kernel.write(server, 1, 0, tick()), Written::Claimed(..)));
    let at = tick();
    let (_, tag) = kernel.read(server, 1, at, at).unwrap();
    (tag, at)
}

#[test]
fn in_a_crowd_that_never_ends_one_response_that_was_ended_shifts_no_other() {
    const CLIENTS: usize = 64;
    const ENDED: usize = 10;
    let (mut kernel, mut now_ns) = (Kernel::new(false), 0);
    let pairs: Vec<_> = (0..CLIENTS).map(|_| (kernel.accept(), kernel.connect())).collect();
    let mut waiting: Vec<_> = pairs.iter().map(|&pair| ask(&mut kernel, pair, &mut now_ns)).collect();
    assert!(kernel.lane.pending[RESPONSE].end(waiting[ENDED].0));
    kernel.counters.ended += 1;
    kernel.counters.pending -= 1;
    let (mut nothing, mut wrong) = (0, 0);
    for step in 0..10 * CLIENTS {
        let place = step % CLIENTS;
        now_ns += 1;
        match kernel.write(pairs[place].0, 1, 0, now_ns) {
            Written::Claimed(_, read_ns) => wrong += usize::from(read_ns != waiting[place].1),
            Written::Nothing => nothing += 1,
            other => panic!("{other:?}"),
        }
        waiting[place] = ask(&mut kernel, pairs[place], &mut now_ns);
    }
    kernel.check();
    assert_eq!(nothing, 1, "its own write has nothing to carry on, or one before it");
    assert!(wrong <= ENDED, "{wrong} after it");
}
