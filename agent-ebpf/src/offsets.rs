//! Offsets of the kernel's fields, set at load from the running kernel's BTF.
//!
//! They sit in `.rodata`, which is frozen before the programs are verified, so the verifier sees constants and
//! checks each access against the kernel's own types.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub static $name: Global<u64> = Global::new(0);
    )*};
}

offsets! {
    /// `sock.__sk_common.skc_num`: local port, host order, u16.
    SOCK_NUM;
    /// `sock.__sk_common.skc_dport`: remote port, network order, u16.
    SOCK_DPORT;
    /// `sock.__sk_common.skc_v6_daddr`: remote address, an IPv4 address mapped into IPv6, 16 bytes.
    SOCK_V6_DADDR;
    /// `sock.__sk_common.skc_v6_rcv_saddr`: local address, in the same form.
    SOCK_V6_RCV_SADDR;
    /// `sock.__sk_common.skc_net.net`: pointer to the network namespace.
    SOCK_NET;
    /// `sock.__sk_common.skc_state`: state of the connection, u8.
    SOCK_STATE;
    /// `sock.sk_lock.owned`: not 0 while a system call or a kernel thread has the socket, u32.
    SOCK_OWNED;
    /// `sock.sk_type`: stream, datagram, ..., u16.
    SOCK_TYPE;
    /// `sock.sk_max_ack_backlog`: how many connections may wait to be accepted, u32. Set by `listen`; a connection has
    /// that of the listener which it was copied from.
    SOCK_BACKLOG;
    /// `sock.sk_backlog.rmem_alloc`: memory of what was received and not read, i32 bytes.
    SOCK_RMEM;
    /// `sock.sk_wmem_queued`: memory of what was written and not acknowledged, i32 bytes.
    SOCK_WMEM;
    /// `sock.sk_forward_alloc`: memory that is charged to it and not used yet, i32 bytes.
    SOCK_FORWARD_ALLOC;
    /// `sock.sk_shutdown`: which ways are ended, u8.
    SOCK_SHUTDOWN;
    /// `net.ns.inum`: inode number of the namespace, u32.
    NET_INUM;
    /// `tcp_sock.copied_seq`: first byte not read by user space, u32.
    TCP_COPIED_SEQ;
    /// `tcp_sock.rcv_nxt`: first byte not received, u32.
    TCP_RCV_NXT;
    /// `tcp_sock.write_seq`: first byte not written by user space, u32.
    TCP_WRITE_SEQ;
    /// `msghdr.msg_iter.count`: bytes that a send call is still to queue, usize.
    MSG_COUNT;
    /// `tcp_sock.lsndtime`: when bytes were last sent, u32 jiffies.
    TCP_LAST_SENT;
    /// `tcp_sock.inet_conn.icsk_ack.lrcvtime`: when bytes were last received, u32 jiffies.
    TCP_LAST_RECEIVED;
    /// `socket.sk`: pointer to the protocol's half of a socket.
    SOCKET_SK;
    /// `unix_sock.addr`: pointer to its address, null if it has none.
    UNIX_ADDRESS;
    /// `unix_sock.peer`: pointer to the other end.
    UNIX_PEER;
    /// `bpf_iter_meta.seq`: pointer to what the reader of a walk gets.
    WALK_OUTPUT;
    /// `sk_buff.sk`: pointer to the socket.
    SKB_SK;
    /// `sk_buff.cb`: what the layer that has the packet keeps in it.
    SKB_CB;
    /// `sk_buff.len`: bytes in all, u32.
    SKB_LEN;
    /// `sk_buff.data_len`: bytes outside the linear part, u32.
    SKB_DATA_LEN;
    /// `sk_buff.head`: pointer to the buffer.
    SKB_HEAD;
    /// `sk_buff.data`: pointer to the first byte.
    SKB_DATA;
    /// `sk_buff.transport_header`: offset from `head`, u16.
    SKB_TRANSPORT_HEADER;
    /// `task_struct.pid`: thread id, u32.
    TASK_PID;
    /// `task_struct.tgid`: process id, u32.
    TASK_TGID;
    /// `task_struct.utime`: time the tick found it in user mode, u64 ns.
    TASK_UTIME;
    /// `task_struct.stime`: ... and in the kernel, u64 ns.
    TASK_STIME;
    /// `task_struct.sched_info.run_delay`: time it was ready and did not run, u64 ns.
    TASK_RUN_DELAY;
    /// `task_struct.se.sum_exec_runtime`: time it ran, u64 ns.
    TASK_RAN;
}

/// Not 0 where the write hook runs after the send: then the departure comes before the write.
#[unsafe(no_mangle)]
pub static WRITE_AFTER_DEPARTURE: Global<u64> = Global::new(0);

/// Not 0 where the kernel counts interrupts and softirqs apart from the task that they interrupt
/// (`CONFIG_IRQ_TIME_ACCOUNTING`).
#[unsafe(no_mangle)]
pub static IRQ_TIME_APART: Global<u64> = Global::new(0);

/// Not 0 where a program may be interrupted by another task's on the same CPU: by preemption in its system call, or in a
/// section that has softirqs off.
#[unsafe(no_mangle)]
pub static PREEMPTIBLE: Global<u64> = Global::new(0);

/// Not 0 where programs are to return at once, which shows what calling them costs.
#[unsafe(no_mangle)]
pub static EMPTY: Global<u64> = Global::new(0);

/// Slot in the `COSTS` map of all tasks that are no proxy's; idle is behind it.
#[unsafe(no_mangle)]
pub static OTHERS_SLOT: Global<u64> = Global::new(0);

/// Byte of a `tcp_sock` that says whether it is transparent (`IP_TRANSPARENT`).
#[unsafe(no_mangle)]
pub static TCP_TRANSPARENT: Global<u64> = Global::new(0);
/// Which bit of it.
#[unsafe(no_mangle)]
pub static TCP_TRANSPARENT_MASK: Global<u64> = Global::new(0);

/// Whether programs are to return at once. The verifier takes out what is behind this then.
#[inline(always)]
pub fn is_empty() -> bool {
    EMPTY.load() != 0
}

/// A field of a pointer whose type the verifier knows.
///
/// # Safety
/// `base` is a program argument or came from one by `field`; `offset` is that of a `T` in its type.
#[inline(always)]
pub unsafe fn field<T: Copy>(base: *const c_void, offset: &Global<u64>) -> T {
    // SAFETY: the verifier checks offset and size, and a bad address reads as zero.
    unsafe { base.cast::<u8>().add(offset.load() as usize).cast::<T>().read_volatile() }
}

/// A field of a pointer whose type the verifier does not know. Zero if the address is bad.
///
/// # Safety
/// None is needed beyond a meaningful answer: the helper checks the address.
#[inline(always)]
pub unsafe fn probe_field<T: Copy + Default>(base: *const c_void, offset: &Global<u64>) -> T {
    let address = base.cast::<u8>().wrapping_add(offset.load() as usize).cast::<T>();
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address) }.unwrap_or_default()
}
