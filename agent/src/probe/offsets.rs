//! Which kernel fields each program reads, and where this kernel keeps them.

use super::btf::Btf;

/// A kernel field that a program reads: the global in the object that takes its offset, and its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name of the global in `agent-ebpf/src/offsets.rs`.
    pub global: &'static str,
    /// Struct the path starts from.
    pub of_struct: &'static str,
    /// Steps from there.
    pub path: &'static [&'static str],
}

macro_rules! fields {
    ($($name:ident = $of:literal . $($step:literal).+;)*) => {
        $(pub(super) const $name: Field =
            Field { global: stringify!($name), of_struct: $of, path: &[$($step),+] };)*
        /// All of them.
        pub const FIELDS: &[Field] = &[$($name),*];
    };
}

fields! {
    SOCK_NUM = "sock"."__sk_common"."skc_num";
    SOCK_DPORT = "sock"."__sk_common"."skc_dport";
    SOCK_V6_DADDR = "sock"."__sk_common"."skc_v6_daddr";
    SOCK_V6_RCV_SADDR = "sock"."__sk_common"."skc_v6_rcv_saddr";
    SOCK_NET = "sock"."__sk_common"."skc_net"."net";
    SOCK_STATE = "sock"."__sk_common"."skc_state";
    SOCK_OWNED = "sock"."sk_lock"."owned";
    SOCK_TYPE = "sock"."sk_type";
    SOCK_BACKLOG = "sock"."sk_max_ack_backlog";
    SOCK_RMEM = "sock"."sk_backlog"."rmem_alloc";
    SOCK_WMEM = "sock"."sk_wmem_queued";
    SOCK_FORWARD_ALLOC = "sock"."sk_forward_alloc";
    SOCK_SHUTDOWN = "sock"."sk_shutdown";
    NET_INUM = "net"."ns"."inum";
    TCP_COPIED_SEQ = "tcp_sock"."copied_seq";
    TCP_RCV_NXT = "tcp_sock"."rcv_nxt";
    TCP_WRITE_SEQ = "tcp_sock"."write_seq";
    MSG_COUNT = "msghdr"."msg_iter"."count";
    TCP_LAST_SENT = "tcp_sock"."lsndtime";
    TCP_LAST_RECEIVED = "tcp_sock"."inet_conn"."icsk_ack"."lrcvtime";
    SOCKET_SK = "socket"."sk";
    UNIX_ADDRESS = "unix_sock"."addr";
    UNIX_PEER = "unix_sock"."peer";
    WALK_OUTPUT = "bpf_iter_meta"."seq";
    SKB_SK = "sk_buff"."sk";
    SKB_CB = "sk_buff"."cb";
    SKB_LEN = "sk_buff"."len";
    SKB_DATA_LEN = "sk_buff"."data_len";
    SKB_HEAD = "sk_buff"."head";
    SKB_DATA = "sk_buff"."data";
    SKB_TRANSPORT_HEADER = "sk_buff"."transport_header";
    TASK_PID = "task_struct"."pid";
    TASK_TGID = "task_struct"."tgid";
    TASK_UTIME = "task_struct"."utime";
    TASK_STIME = "task_struct"."stime";
    TASK_RAN = "task_struct"."se"."sum_exec_runtime";
    TASK_RUN_DELAY = "task_struct"."sched_info"."run_delay";
}

/// The fields that name a socket's local end and its side of the proxy.
pub(super) const ROLE: &[Field] = &[SOCK_BACKLOG, SOCK_NUM, SOCK_NET, NET_INUM];

/// One bit of a kernel struct.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bit {
    /// Offset of its byte.
    pub byte: u32,
    /// The bit in that byte.
    pub mask: u8,
}

/// Which bit of a `tcp_sock` says that the socket is transparent: a bit field before Linux 6.6, a numbered bit of
/// `inet_flags` since. `None` if this kernel has neither.
pub fn transparent(btf: &Btf) -> Option<Bit> {
    let start = btf.offset_of("tcp_sock", &["inet_conn", "icsk_inet"])?;
    let numbered =
        || Some(btf.offset_of("inet_sock", &["inet_flags"])? * 8 + btf.constant("INET_FLAGS_TRANSPARENT")?);
    let bit = btf.bit_of("inet_sock", &["transparent"]).or_else(numbered)?;
    // Little-endian: the numbering of bits goes on from byte to byte.
    Some(Bit { byte: start + bit / 8, mask: 1 << (bit % 8) })
}

/// Whether this kernel counts interrupts and softirqs apart from the task below them (`CONFIG_IRQ_TIME_ACCOUNTING`): then it
/// has a type for their counters.
pub fn irq_time_apart(btf: &Btf) -> bool {
    btf.offset_of("irqtime", &["total"]).is_some()
}

impl Field {
    /// Its offset in bytes, if this kernel has it.
    pub fn offset_bytes(&self, btf: &Btf) -> Option<u32> {
        btf.offset_of(self.of_struct, self.path)
    }

    /// As people write it: `sock.__sk_common.skc_num`.
    pub fn dotted(&self) -> String {
        format!("{}.{}", self.of_struct, self.path.join("."))
    }
}
