//! Formats of units whose first bytes tell their length, as HTTP/2's frames and TLS's records.

/// Units of a format in which the first bytes of each tell its length: frames, records. Each is handed on whole, with
/// the time of its first byte.
#[derive(Debug, Default)]
pub(super) struct Units {
    unit: Vec<u8>,
    /// Of the first byte of `unit`, ns.
    start_ns: u64,
}

impl Units {
    /// Takes bytes that came at one time. `length` tells the whole length of the unit that begins with
    /// `header_bytes` of header.
    ///
    /// # Errors
    /// Whatever `take` fails with.
    pub(super) fn push<E>(
        &mut self,
        time_ns: u64,
        mut bytes: &[u8],
        header_bytes: usize,
        length: impl Fn(&[u8]) -> usize,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.unit.is_empty() {
                self.start_ns = time_ns;
            }
            let whole = |unit: &[u8]| if unit.len() < header_bytes { header_bytes } else { length(unit) };
            let missing = whole(&self.unit) - self.unit.len();
            let (new, rest) = bytes.split_at(missing.min(bytes.len()));
            self.unit.extend_from_slice(new);
            bytes = rest;
            if self.unit.len() >= header_bytes && self.unit.len() == whole(&self.unit) {
                take(self.start_ns, &self.unit)?;
                self.unit.clear();
            }
        }
        Ok(())
    }

    /// Whether the last unit came to its end.
    #[cfg(test)]
    pub(super) fn is_whole(&self) -> bool {
        self.unit.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::Units;

    #[test]
    fn units_are_whole_and_have_the_time_of_their_first_byte() {
        // The first byte is the length of the rest.
        let mut units = Units::default();
        let mut taken = Vec::new();
        let packets: [(u64, &[u8]); 4] = [(1, &[2, 7]), (2, &[7, 0, 1]), (3, &[8, 3]), (4, &[9, 9, 9])];
        for (time_ns, bytes) in packets {
            let Ok(()) = units.push(
                time_ns,
                bytes,
                1,
                |unit| 1 + usize::from(unit[0]),
                |time_ns, unit| {
                    taken.push((time_ns, unit.to_vec()));
                    Ok::<_, Infallible>(())
                },
            );
        }
        assert_eq!(taken, [(1, vec![2, 7, 7]), (2, vec![0]), (2, vec![1, 8]), (3, vec![3, 9, 9, 9])]);
        assert!(units.is_whole());
    }
}
