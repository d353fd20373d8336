//! How deep the programs' calls go: older kernels than the one that the tests run on refuse what goes deeper than they allow.

use std::collections::BTreeMap;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind};

use super::load::OBJECT;

/// What the frames of calls that are under way together may take: `MAX_BPF_STACK` of the kernel's include/linux/filter.h.
const MOST_BYTES: u32 = 512;
/// A frame takes a multiple of this, at least one: `check_max_stack_depth` of Linux 6.1's kernel/bpf/verifier.c, whose sum for
/// calls that it refused (544) this gave as well. Linux 6.12 took those.
const FRAME_BYTES: u32 = 32;

/// The register that points to the frame.
const FRAME: u8 = 10;
// The instructions that matter, of the kernel's include/uapi/linux/bpf.h and bpf_common.h.
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
const CALL: u8 = 0x85;
const CALL_OF_FUNCTION: u8 = 1;
const WIDE: u8 = 0x18;
const CLASS: u8 = 0x07;
const LOAD: u8 = 0x01;
const STORES: [u8; 2] = [0x02, 0x03];

/// Section and offset of a function.
type Place = (usize, u64);

#[derive(Debug, Default)]
struct Function {
    name: String,
    frame_bytes: u32,
    calls: Vec<Place>,
}

/// One instruction: `struct bpf_insn`.
struct Instruction {
    code: u8,
    to: u8,
    from: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn new(bytes: &[u8]) -> Self {
        Self {
            code: bytes[0],
            to: bytes[1] & 15,
            from: bytes[1] >> 4,
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    /// How far below the frame's end it reaches by itself.
    fn reach_bytes(&self) -> u32 {
        let class = self.code & CLASS;
        let base = if class == LOAD { self.from } else { self.to };
        let touches = class == LOAD || STORES.contains(&class);
        if touches && base == FRAME { u32::from(self.offset.unsigned_abs()) } else { 0 }
    }
}

/// All functions of the object.
fn functions(elf: &object::File<'_>) -> BTreeMap<Place, Function> {
    let mut found = BTreeMap::new();
    for symbol in elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let Some(index) = symbol.section_index() else { continue };
        let section = elf.section_by_index(index).expect("the section of a symbol");
        let code = section.data_range(symbol.address(), symbol.size()).expect("data").expect("code");
        let mut function =
            Function { name: symbol.name().expect("a name").to_owned(), ..Function::default() };
        let (mut at, mut addresses) = (0, [false; 16]);
        while at < code.len() {
            let instruction = Instruction::new(&code[at..at + 8]);
            let Instruction { code: operation, to, from, immediate, .. } = instruction;
            let mut reach_bytes = instruction.reach_bytes();
            if operation == ADD && addresses[to as usize] {
                reach_bytes = immediate.min(0).unsigned_abs();
            }
            addresses[to as usize] = operation == MOVE && from == FRAME;
            function.frame_bytes = function.frame_bytes.max(reach_bytes);
            if operation == CALL && from == CALL_OF_FUNCTION {
                let place = symbol.address() + at as u64;
                let relative = i64::from(immediate) * 8 + 8;
                function.calls.push(match section.relocations().find(|(offset, _)| *offset == place) {
                    Some((_, relocation)) => {
                        let RelocationTarget::Symbol(target) = relocation.target() else {
                            panic!("a target")
                        };
                        let target = elf.symbol_by_index(target).expect("the symbol of a target");
                        let section = target.section_index().expect("its section").0;
                        let named = target.kind() == SymbolKind::Section;
                        (section, if named { relative.cast_unsigned() } else { target.address() })
                    }
                    None => (index.0, place.strict_add_signed(relative)),
                });
            }
            at += if operation == WIDE { 16 } else { 8 };
        }
        found.insert((index.0, symbol.address()), function);
    }
    found
}

/// The deepest calls that begin with this function: how much their frames take, and their names.
fn deepest(functions: &BTreeMap<Place, Function>, place: Place) -> (u32, Vec<&str>) {
    let function = functions.get(&place).unwrap_or_else(|| panic!("no function at {place:?}"));
    let (bytes, mut names) =
        function.calls.iter().map(|&call| deepest(functions, call)).max().unwrap_or_default();
    names.insert(0, &function.name);
    (bytes + function.frame_bytes.max(1).next_multiple_of(FRAME_BYTES), names)
}

#[test]
fn the_deepest_calls_are_within_what_the_oldest_kernel_allows() {
    let elf = object::File::parse(OBJECT).expect("the object of the probes");
    let functions = functions(&elf);
    let programs = super::PROGRAMS.iter().map(|program| program.name);
    let mut seen = 0;
    for (&place, function) in &functions {
        if !programs.clone().any(|name| name == function.name) {
            continue;
        }
        seen += 1;
        let (bytes, names) = deepest(&functions, place);
        assert!(bytes <= MOST_BYTES, "{bytes} bytes of stack: {}", names.join(" calls "));
    }
    assert_eq!(seen, super::PROGRAMS.len(), "all programs were looked at");
}
