//! One direction of a TCP connection, put in order: the bytes as the receiver's application gets them, each with the
//! time of the first packet that carried it.

use std::collections::BTreeMap;

/// Half of the sequence space: what is further ahead is behind.
const HALF: u32 = 1 << 31;

/// The bytes of one direction of a connection, from the first packet with payload that was captured.
///
/// There is no handshake to begin with: the capture keeps only packets with payload, and takes connections from
/// their beginning.
#[derive(Debug, Default)]
pub struct Stream {
    /// Of the byte that comes next; nothing before the first packet.
    next: Option<u32>,
    /// Packets that came before those in front of them, by distance from `next` when it was 0: sequence number
    /// and what they carried.
    early: BTreeMap<u64, (u64, Vec<u8>)>,
    /// How many bytes were handed on.
    taken: u64,
    /// Packets that brought nothing new.
    pub repeated: u64,
}

impl Stream {
    /// Takes one packet and hands on what is in order now, each piece with the time of its packet, ns.
    ///
    /// # Errors
    /// Whatever `take` fails with.
    pub fn push<E>(
        &mut self,
        time_ns: u64,
        sequence: u32,
        payload: &[u8],
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let next = *self.next.get_or_insert(sequence);
        let ahead = sequence.wrapping_sub(next);
        if ahead >= HALF {
            // Behind: what it repeats is cut off.
            let known = next.wrapping_sub(sequence) as usize;
            match payload.get(known..).filter(|rest| !rest.is_empty()) {
                Some(rest) => self.hand_on(time_ns, rest, &mut take)?,
                None => self.repeated += 1,
            }
        } else if ahead > 0 {
            let place = self.taken + u64::from(ahead);
            let longer = self.early.get(&place).is_none_or(|(_, kept)| kept.len() < payload.len());
            if longer {
                self.early.insert(place, (time_ns, payload.to_vec()));
            } else {
                self.repeated += 1;
            }
            return Ok(());
        } else {
            self.hand_on(time_ns, payload, &mut take)?;
        }
        while let Some(entry) = self.early.first_entry()
            && *entry.key() <= self.taken
        {
            let (place, (time_ns, kept)) = entry.remove_entry();
            match kept.get((self.taken - place) as usize..).filter(|rest| !rest.is_empty()) {
                Some(rest) => self.hand_on(time_ns, rest, &mut take)?,
                None => self.repeated += 1,
            }
        }
        Ok(())
    }

    /// Whether nothing waits for bytes that never came.
    pub fn is_whole(&self) -> bool {
        self.early.is_empty()
    }

    fn hand_on<E>(
        &mut self,
        time_ns: u64,
        bytes: &[u8],
        take: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.next = self.next.map(|next| next.wrapping_add(bytes.len() as u32));
        self.taken += bytes.len() as u64;
        take(time_ns, bytes)
    }
}

/// Units of a format in which the first bytes of each tell its length: frames, records. Each is handed on whole, with
/// the time of its first byte.
#[derive(Debug, Default)]
pub struct Units {
    unit: Vec<u8>,
    /// Of the first byte of `unit`, ns.
    started_ns: u64,
}

impl Units {
    /// Takes bytes that came at one time. `length` tells the whole length of the unit that begins with
    /// `header_bytes` of header.
    ///
    /// # Errors
    /// Whatever `take` fails with.
    pub fn push<E>(
        &mut self,
        time_ns: u64,
        mut bytes: &[u8],
        header_bytes: usize,
        length: impl Fn(&[u8]) -> usize,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.unit.is_empty() {
                self.started_ns = time_ns;
            }
            let whole = |unit: &[u8]| if unit.len() < header_bytes { header_bytes } else { length(unit) };
            let missing = whole(&self.unit) - self.unit.len();
            let (new, rest) = bytes.split_at(missing.min(bytes.len()));
            self.unit.extend_from_slice(new);
            bytes = rest;
            if self.unit.len() >= header_bytes && self.unit.len() == whole(&self.unit) {
                take(self.started_ns, &self.unit)?;
                self.unit.clear();
            }
        }
        Ok(())
    }

    /// Whether the last unit came to its end.
    pub fn is_whole(&self) -> bool {
        self.unit.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::{Stream, Units};

    /// What a stream hands on of packets (time, sequence number, payload).
    fn ordered(packets: &[(u64, u32, &str)]) -> (Vec<(u64, String)>, Stream) {
        let mut stream = Stream::default();
        let mut taken = Vec::new();
        for (time_ns, sequence, payload) in packets {
            let Ok(()) = stream.push(*time_ns, *sequence, payload.as_bytes(), |time_ns, bytes| {
                taken.push((time_ns, String::from_utf8_lossy(bytes).into_owned()));
                Ok::<_, Infallible>(())
            });
        }
        (taken, stream)
    }

    fn pieces<const N: usize>(expected: [(u64, &str); N]) -> Vec<(u64, String)> {
        expected.map(|(time_ns, bytes)| (time_ns, bytes.to_owned())).to_vec()
    }

    #[test]
    fn bytes_keep_the_time_of_their_packet_across_the_end_of_the_sequence_space() {
        let (taken, stream) = ordered(&[(1, u32::MAX - 1, "abc"), (2, 1, "de")]);
        assert_eq!(taken, pieces([(1, "abc"), (2, "de")]));
        assert!(stream.is_whole() && stream.repeated == 0);
    }

    #[test]
    fn what_came_early_waits_and_keeps_its_time() {
        let (taken, stream) = ordered(&[(1, 10, "ab"), (2, 15, "f"), (3, 14, "e"), (4, 12, "cd")]);
        assert_eq!(taken, pieces([(1, "ab"), (4, "cd"), (3, "e"), (2, "f")]));
        assert!(stream.is_whole());
        assert!(!ordered(&[(1, 10, "ab"), (2, 13, "d")]).1.is_whole());
    }

    #[test]
    fn what_is_sent_again_keeps_its_first_time() {
        let (taken, stream) = ordered(&[(1, 10, "ab"), (2, 10, "ab"), (3, 11, "bcd"), (4, 12, "cd")]);
        assert_eq!(taken, pieces([(1, "ab"), (3, "cd")]));
        assert_eq!(stream.repeated, 2);
    }

    #[test]
    fn units_are_whole_and_have_the_time_of_their_first_byte() {
        // The first byte is the length of the rest.
        let mut units = Units::default();
        let mut taken = Vec::new();
        let packets: [(u64, &[u8]); 4] = [(1, &[2, 7]), (2, &[7, 0, 1]), (3, &[8, 3]), (4, &[9, 9, 9])];
        for (time_ns, bytes) in packets {
            let Ok(()) = units.push(time_ns, bytes, 1, |unit| 1 + usize::from(unit[0]), |time_ns, unit| {
                taken.push((time_ns, unit.to_vec()));
                Ok::<_, Infallible>(())
            });
        }
        assert_eq!(taken, [(1, vec![2, 7, 7]), (2, vec![0]), (2, vec![1, 8]), (3, vec![3, 9, 9, 9])]);
        assert!(units.is_whole());
    }
}
