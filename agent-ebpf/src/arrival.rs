//! `arrival`: the kernel puts the first bytes of a message on the proxy's socket.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::maps::socket_state;

/// `sk_data_ready(sk)`: bytes are ready on a socket, in softirq or, from the backlog, in a system call.
#[btf_tracepoint(function = "sk_data_ready")]
pub fn arrival(ctx: BtfTracePointContext) -> i32 {
    if let Some(socket) = socket_state(ctx.arg(0)) {
        // SAFETY: no precondition.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        socket.ready_ns = now_ns;
        if socket.arrival_ns == 0 {
            socket.arrival_ns = now_ns;
        }
    }
    0
}
