//! A walker over the kernel's BTF: offsets of fields, and which tracepoints there are.
//!
//! Pure: bytes in, answers out. Format: the kernel's `Documentation/bpf/btf.rst`. rustc emits no CO-RE
//! relocations and the loader keeps BTF members to itself, hence this.

use std::collections::HashMap;

use thiserror::Error;

/// Where the running kernel publishes its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Why bytes are not BTF.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BtfError {
    /// The bytes do not begin as BTF of this machine's byte order does.
    #[error("not BTF: the first bytes are not its magic number")]
    Magic,
    /// The bytes end inside what the header or a type announces.
    #[error("BTF ends early, at byte {at}")]
    Short {
        /// Offset of the first missing byte.
        at: usize,
    },
    /// A kind of type this walker does not know, so it cannot find the next one.
    #[error("BTF type {id} is of unknown kind {kind}")]
    Kind {
        /// Number of the type.
        id: u32,
        /// Its kind.
        kind: u32,
    },
}

/// The types of one kernel.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Offset of each type's record in `bytes`; the id is the index plus one.
    types: Vec<usize>,
    structs: HashMap<String, u32>,
    typedefs: HashMap<String, u32>,
}

impl Btf {
    /// Reads BTF as it lies in [`VMLINUX`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        if bytes.len() < HEADER_BYTES || bytes[..2] != MAGIC.to_le_bytes() {
            return Err(BtfError::Magic);
        }
        let header = word(&bytes, 4)? as usize;
        let types_at = header + word(&bytes, 8)? as usize;
        let types_end = types_at + word(&bytes, 12)? as usize;
        let strings = header + word(&bytes, 16)? as usize;
        let strings_end = strings + word(&bytes, 20)? as usize;
        if bytes.len() < types_end.max(strings_end) {
            return Err(BtfError::Short { at: bytes.len() });
        }
        let mut btf =
            Self { bytes, strings, types: Vec::new(), structs: HashMap::new(), typedefs: HashMap::new() };
        let mut at = types_at;
        while at < types_end {
            let id = btf.types.len() as u32 + 1;
            let record = btf.record(at)?;
            let name = btf.name(record.name)?;
            if !name.is_empty() {
                match record.kind {
                    KIND_STRUCT => btf.structs.entry(name).or_insert(id),
                    KIND_TYPEDEF => btf.typedefs.entry(name).or_insert(id),
                    _ => &mut 0,
                };
            }
            btf.types.push(at);
            at += 12 + record.trailing_bytes(id)?;
        }
        Ok(btf)
    }

    /// Byte offset of a field, for example `("sock", ["__sk_common", "skc_num"])`. Anonymous structs and
    /// unions on the way need not be named. `None` if there is no such field or it is a bit field.
    pub fn offset_of(&self, of_struct: &str, path: &[&str]) -> Option<u32> {
        let place = self.place_of(of_struct, path)?;
        (place.width == 0 && place.bits % 8 == 0).then_some(place.bits / 8)
    }

    /// Offset in bits of a bit field that is one bit wide; the path as in [`Btf::offset_of`].
    pub fn bit_of(&self, of_struct: &str, path: &[&str]) -> Option<u32> {
        let place = self.place_of(of_struct, path)?;
        (place.width == 1).then_some(place.bits)
    }

    /// Value of the constant of this name, of whichever enumeration.
    pub fn constant(&self, name: &str) -> Option<u32> {
        self.types.iter().find_map(|&at| {
            let record = self.record(at).ok().filter(|record| record.kind == KIND_ENUM)?;
            let mut entries = (0..record.length as usize).map(|index| at + 12 + index * 8);
            let entry = entries
                .find(|&entry| word(&self.bytes, entry).is_ok_and(|offset| self.is_name(offset, name)))?;
            word(&self.bytes, entry + 4).ok()
        })
    }

    fn place_of(&self, of_struct: &str, path: &[&str]) -> Option<Member> {
        let mut place = Member { bits: 0, width: 0, of_type: *self.structs.get(of_struct)? };
        for step in path {
            let member = self.member(self.resolve(place.of_type)?, step)?;
            place = Member { bits: place.bits + member.bits, ..member };
        }
        Some(place)
    }

    /// True if the kernel has this tracepoint in a form `tp_btf` programs attach to.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.typedefs.contains_key(&format!("btf_trace_{name}"))
    }

    /// True if the kernel has this function and describes it.
    pub fn has_function(&self, name: &str) -> bool {
        self.types.iter().any(|&at| {
            self.record(at).is_ok_and(|record| record.kind == KIND_FUNC && self.is_name(record.name, name))
        })
    }

    /// A member of a struct or union, looking into anonymous members.
    fn member(&self, id: u32, name: &str) -> Option<Member> {
        let at = *self.types.get(id.checked_sub(1)? as usize)?;
        let record = self.record(at).ok()?;
        if record.kind != KIND_STRUCT && record.kind != KIND_UNION {
            return None;
        }
        (0..record.length as usize).find_map(|index| {
            let member = at + 12 + index * 12;
            let member_name = self.name(word(&self.bytes, member).ok()?).ok()?;
            let member_type = word(&self.bytes, member + 4).ok()?;
            let offset = word(&self.bytes, member + 8).ok()?;
            // With the kind flag the upper byte is the width of a bit field.
            let (bits, width) =
                if record.kind_flag { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
            if member_name == name {
                return Some(Member { bits, width, of_type: member_type });
            }
            if !member_name.is_empty() {
                return None;
            }
            let inner = self.member(self.resolve(member_type)?, name)?;
            Some(Member { bits: bits + inner.bits, ..inner })
        })
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        // No chain in any kernel is this long; a loop in hostile input ends here.
        for _ in 0..32 {
            let Some(index) = id.checked_sub(1) else { return Some(0) };
            let record = self.record(*self.types.get(index as usize)?).ok()?;
            match record.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_TYPE_TAG => id = record.size_or_type,
                _ => return Some(id),
            }
        }
        None
    }

    fn record(&self, at: usize) -> Result<Record, BtfError> {
        let flags = word(&self.bytes, at + 4)?;
        Ok(Record {
            name: word(&self.bytes, at)?,
            length: flags & 0xffff,
            kind: flags >> 24 & 0x1f,
            kind_flag: flags >> 31 == 1,
            size_or_type: word(&self.bytes, at + 8)?,
        })
    }

    fn is_name(&self, offset: u32, name: &str) -> bool {
        let rest = self.bytes.get(self.strings + offset as usize..);
        rest.and_then(|rest| rest.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn name(&self, offset: u32) -> Result<String, BtfError> {
        let start = self.strings + offset as usize;
        let rest = self.bytes.get(start..).ok_or(BtfError::Short { at: start })?;
        let end = rest.iter().position(|&byte| byte == 0).ok_or(BtfError::Short { at: self.bytes.len() })?;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }
}

/// Where a field is in its struct.
struct Member {
    bits: u32,
    /// Of a bit field, in bits; 0 of any other.
    width: u32,
    of_type: u32,
}

struct Record {
    name: u32,
    length: u32,
    kind: u32,
    kind_flag: bool,
    size_or_type: u32,
}

impl Record {
    /// How many bytes follow the record's twelve.
    fn trailing_bytes(&self, id: u32) -> Result<usize, BtfError> {
        let length = self.length as usize;
        Ok(match self.kind {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * length,
            KIND_ENUM | KIND_FUNC_PROTO => 8 * length,
            // pointer, forward, typedef, qualifiers, function, float, type tag
            2 | 7..=12 | 16 | 18 => 0,
            kind => return Err(BtfError::Kind { id, kind }),
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => Ok(u32::from_le_bytes([a, b, c, d])),
        _ => Err(BtfError::Short { at }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF of: `struct inner { int a; int b; }; typedef struct inner alias;`
    /// `struct outer { int x; union { int u; alias named; }; int bits:3; int bit:1; }; typedef int btf_trace_thing;`
    /// `void act(void); enum { ONE = 1, SEVEN = 7 };`
    fn sample() -> Vec<u8> {
        let mut strings = vec![0];
        let mut text = |name: &str| {
            let at = strings.len() as u32;
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
            at
        };
        let mut types: Vec<u32> = Vec::new();
        types.extend([text("int"), KIND_INT << 24, 4, 32]);
        types.extend([text("inner"), KIND_STRUCT << 24 | 2, 8, text("a"), 1, 0, text("b"), 1, 32]);
        types.extend([text("alias"), KIND_TYPEDEF << 24, 2]);
        types.extend([0, KIND_UNION << 24 | 2, 8, text("u"), 1, 0, text("named"), 3, 0]);
        types.extend([text("outer"), 1 << 31 | KIND_STRUCT << 24 | 4, 16]);
        types.extend([text("x"), 1, 0, 0, 4, 32]);
        types.extend([text("bits"), 1, 3 << 24 | 0x60, text("bit"), 1, 1 << 24 | 0x63]);
        types.extend([text("btf_trace_thing"), KIND_TYPEDEF << 24, 1]);
        types.extend([0, KIND_FUNC_PROTO << 24, 0]);
        types.extend([text("act"), KIND_FUNC << 24, 7]);
        types.extend([0, KIND_ENUM << 24 | 2, 4, text("ONE"), 1, text("SEVEN"), 7]);
        let types_bytes = types.len() as u32 * 4;
        let header = [24, 0, types_bytes, types_bytes, strings.len() as u32];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        header.iter().chain(&types).for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn offsets_through_typedefs_and_anonymous_unions() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset_of("outer", &["x"]), Some(0));
        assert_eq!(btf.offset_of("outer", &["u"]), Some(4));
        assert_eq!(btf.offset_of("outer", &["named", "b"]), Some(8));
    }

    #[test]
    fn single_bits_and_constants() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.bit_of("outer", &["bit"]), Some(0x63));
        assert_eq!(btf.bit_of("outer", &["bits"]), None);
        assert_eq!(btf.bit_of("outer", &["x"]), None);
        assert_eq!((btf.constant("ONE"), btf.constant("SEVEN")), (Some(1), Some(7)));
        assert_eq!((btf.constant("SEVE"), btf.constant("act")), (None, None));
    }

    #[test]
    fn what_is_not_there_is_none() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset_of("outer", &["missing"]), None);
        assert_eq!(btf.offset_of("outer", &["bits"]), None);
        assert_eq!(btf.offset_of("nothing", &["x"]), None);
        assert_eq!(btf.offset_of("outer", &["x", "deeper"]), None);
        assert!(btf.has_tracepoint("thing") && !btf.has_tracepoint("other"));
        assert!(btf.has_function("act") && !btf.has_function("ac") && !btf.has_function("action"));
        assert!(!btf.has_function("outer"));
    }

    #[test]
    fn any_truncation_is_an_error() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(Btf::parse(whole[..length].to_vec()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn an_unknown_kind_is_named() {
        let mut bytes = sample();
        bytes[HEADER_BYTES + 7] = 30;
        assert_eq!(Btf::parse(bytes).err(), Some(BtfError::Kind { id: 1, kind: 30 }));
    }
}
