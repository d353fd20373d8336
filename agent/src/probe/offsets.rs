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
    SOCK_NET = "sock"."__sk_common"."skc_net"."net";
    SOCK_STATE = "sock"."__sk_common"."skc_state";
    SOCK_OWNED = "sock"."sk_lock"."owned";
    SOCK_SHUTDOWN = "sock"."sk_shutdown";
    NET_INUM = "net"."ns"."inum";
    TCP_COPIED_SEQ = "tcp_sock"."copied_seq";
    TCP_RCV_NXT = "tcp_sock"."rcv_nxt";
    TCP_WRITE_SEQ = "tcp_sock"."write_seq";
    MSG_COUNT = "msghdr"."msg_iter"."count";
    SKB_SK = "sk_buff"."sk";
    SKB_CB = "sk_buff"."cb";
    SKB_LEN = "sk_buff"."len";
    SKB_DATA_LEN = "sk_buff"."data_len";
    SKB_HEAD = "sk_buff"."head";
    SKB_DATA = "sk_buff"."data";
    SKB_TRANSPORT_HEADER = "sk_buff"."transport_header";
    TASK_PID = "task_struct"."pid";
    TASK_TGID = "task_struct"."tgid";
}

/// The fields that name a socket's local end.
pub(super) const LOCAL_END: &[Field] = &[SOCK_NUM, SOCK_NET, NET_INUM];

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
