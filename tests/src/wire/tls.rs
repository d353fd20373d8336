//! TLS 1.3 in one direction of a connection: records, opened with the secrets that an end of it has logged.
//!
//! What is in a record has the time of the packet with the record's first byte, so a message has that of the record with
//! its first byte: a record is sealed, sent and opened as a whole, and begins to leave and to arrive with that packet.
//!
//! Nothing of the handshake is read. Which secret belongs to a direction is found by trying: a record opens with one
//! key only, and the first that opens is the first of those with application data.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use ring::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;

use super::units::Units;
use super::{Sighting, stream};

const RECORD_HEADER_BYTES: usize = 5;
const HANDSHAKE: u8 = 22;
/// Of the handshake messages, the first.
const CLIENT_HELLO: u8 = 1;
const APPLICATION_DATA: u8 = 23;
/// Of the handshake messages that come after the handshake.
const KEY_UPDATE: u8 = 24;

/// The labels of the secrets in a key log that application data is encrypted with.
const LABELS: [&str; 2] = ["CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"];

/// Secrets of connections, as TLS libraries log them.
#[derive(Debug, Default)]
pub struct KeyLog {
    /// By the random number of the client's hello.
    secrets: HashMap<Vec<u8>, Vec<Vec<u8>>>,
    /// The random numbers of the hellos seen, by the opener of the connection.
    hellos: RefCell<HashMap<SocketAddr, Vec<u8>>>,
}

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Messages {
    keys: Rc<KeyLog>,
    /// Who opened the connection.
    connection: SocketAddr,
    records: Units,
    opener: Option<Box<Opener>>,
    /// What the records carry.
    inner: Box<stream::Messages>,
}

/// Opens the records of one direction in their order.
#[derive(Debug)]
struct Opener {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl KeyLog {
    /// Reads lines in the format that NSS began: label, client random, secret. The three may stand anywhere in a line,
    /// and what is between them is skipped.
    ///
    /// # Errors
    /// When a secret is not hexadecimal.
    pub fn read(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let mut secrets = HashMap::<_, Vec<_>>::new();
        while let Some(word) = words.next() {
            if LABELS.contains(&word) {
                let mut number = || {
                    let digits = words.next().with_context(|| format!("a {word} without its secret"))?;
                    hexadecimal(digits).with_context(|| format!("a {word} that is {digits:?}"))
                };
                secrets.entry(number()?).or_default().push(number()?);
            }
        }
        Ok(Self { secrets, hellos: RefCell::default() })
    }

    /// The key that opens this record as the first of its direction, and what was in it. Secrets of the connection if
    /// its first hello was seen, else of any.
    fn opener(&self, of: SocketAddr, record: &[u8]) -> Option<(Opener, Vec<u8>)> {
        let hellos = self.hellos.borrow();
        let known = hellos.get(&of).and_then(|random| self.secrets.get_key_value(random));
        let secrets = known.map_or_else(
            || self.secrets.values().flatten().collect::<Vec<_>>(),
            |(_, secrets)| secrets.iter().collect(),
        );
        secrets.into_iter().flat_map(|secret| Opener::of(secret)).find_map(|mut opener| {
            let plain = opener.open(record)?;
            Some((opener, plain))
        })
    }

    /// Takes a client's hello, by whose random number its secrets are logged.
    fn note_hello(&self, of: SocketAddr, record: &[u8]) {
        // Behind the record's header: type, length, and version of the message.
        if record[0] == HANDSHAKE
            && record.get(RECORD_HEADER_BYTES) == Some(&CLIENT_HELLO)
            && let Some(random) = record.get(RECORD_HEADER_BYTES + 6..RECORD_HEADER_BYTES + 38)
        {
            self.hellos.borrow_mut().insert(of, random.to_vec());
        }
    }
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

impl Messages {
    pub(super) fn new(keys: Rc<KeyLog>, connection: SocketAddr, inner: stream::Messages) -> Self {
        Self { keys, connection, records: Units::default(), opener: None, inner: Box::new(inner) }
    }

    pub(super) fn take(&mut self, time_ns: u64, bytes: &[u8], sightings: &mut Vec<Sighting>) -> Result<()> {
        self.records.push(time_ns, bytes, RECORD_HEADER_BYTES, record_bytes, |start_ns, record| {
            if record[0] != APPLICATION_DATA {
                self.keys.note_hello(self.connection, record);
                return Ok(());
            }
            let plain = if let Some(opener) = &mut self.opener {
                opener.open(record).context("a TLS record does not open with the key of those before it")?
            } else if let Some((opener, plain)) = self.keys.opener(self.connection, record) {
                self.opener = Some(Box::new(opener));
                plain
            } else {
                // Of the handshake, whose keys are not asked for.
                return Ok(());
            };
            match content(&plain).context("a TLS record without content")? {
                (APPLICATION_DATA, data) => self.inner.take(start_ns, data, sightings),
                (HANDSHAKE, [KEY_UPDATE, ..]) => bail!("the keys of a TLS connection were changed"),
                _ => Ok(()),
            }
        })
    }
}

/// Length of the record that begins with this header.
fn record_bytes(header: &[u8]) -> usize {
    RECORD_HEADER_BYTES + (usize::from(header[3]) << 8 | usize::from(header[4]))
}

/// Type and content of what was in a record: zeros may follow the type, which follows the content.
fn content(plain: &[u8]) -> Option<(u8, &[u8])> {
    let end = plain.iter().rposition(|&byte| byte != 0)?;
    Some((plain[end], &plain[..end]))
}

impl Opener {
    /// One for each cipher suite that goes with a secret of this length.
    fn of(secret: &[u8]) -> Vec<Self> {
        let (hash, ciphers): (_, &[&'static aead::Algorithm]) = match secret.len() {
            32 => (hkdf::HKDF_SHA256, &[&aead::AES_128_GCM, &aead::CHACHA20_POLY1305]),
            48 => (hkdf::HKDF_SHA384, &[&aead::AES_256_GCM]),
            _ => return Vec::new(),
        };
        let secret = hkdf::Prk::new_less_safe(hash, secret);
        ciphers.iter().filter_map(|cipher| Self::new(&secret, cipher)).collect()
    }

    fn new(secret: &hkdf::Prk, cipher: &'static aead::Algorithm) -> Option<Self> {
        struct IvLength;
        impl hkdf::KeyType for IvLength {
            fn len(&self) -> usize {
                NONCE_LEN
            }
        }
        let label = label("key", cipher.key_len());
        let key = UnboundKey::from(secret.expand(&[&label], cipher).ok()?);
        let mut iv = [0; NONCE_LEN];
        secret.expand(&[&self::label("iv", NONCE_LEN)], IvLength).ok()?.fill(&mut iv).ok()?;
        Some(Self { key: LessSafeKey::new(key), iv, sequence: 0 })
    }

    /// What is in the next record, its type included.
    fn open(&mut self, record: &[u8]) -> Option<Vec<u8>> {
        let (header, sealed) = record.split_at(RECORD_HEADER_BYTES);
        let mut nonce = self.iv;
        for (byte, counted) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= counted;
        }
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain_bytes = self.key.open_in_place(nonce, Aad::from(header), &mut sealed).ok()?.len();
        sealed.truncate(plain_bytes);
        self.sequence += 1;
        Some(sealed)
    }
}

/// The `HkdfLabel` of RFC 8446, section 7.1, without a context.
fn label(name: &str, length: usize) -> Vec<u8> {
    const PREFIX: &str = "tls13 ";
    let mut label = (length as u16).to_be_bytes().to_vec();
    label.push((PREFIX.len() + name.len()) as u8);
    label.extend_from_slice(PREFIX.as_bytes());
    label.extend_from_slice(name.as_bytes());
    label.push(0);
    label
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::rc::Rc;

    use super::{KeyLog, Messages, hexadecimal};
    use crate::wire::stream::Carried;
    use crate::wire::{Direction, Sighting};

    // RFC 8448, section 3, "Simple 1-RTT Handshake": what the client sends after the handshake.
    const SECRET: &str = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
    const RECORD: &str = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20\
         441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4";
    const CLOSE: &str = "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3";

    fn bytes(digits: &str) -> Vec<u8> {
        hexadecimal(digits).unwrap()
    }

    fn connection() -> SocketAddr {
        "[::1]:40000".parse().unwrap()
    }

    fn keys() -> Rc<KeyLog> {
        let other = "11".repeat(48);
        let log = format!(
            "log CLIENT_TRAFFIC_SECRET_0 00aa {other} SERVER_TRAFFIC_SECRET_0 00aa {other}\n\
             CLIENT_HANDSHAKE_TRAFFIC_SECRET 00ff {other}\nCLIENT_TRAFFIC_SECRET_0 00ff {SECRET}\n"
        );
        Rc::new(KeyLog::read(&log).unwrap())
    }

    /// A connection that carries HTTP/1.1 inside, which what the RFC's client sends is not.
    fn messages() -> Messages {
        Messages::new(keys(), connection(), Carried::Http1.messages(Direction::Request, connection()))
    }

    fn take(messages: &mut Messages, bytes: &[u8]) -> anyhow::Result<Vec<Sighting>> {
        let mut sightings = Vec::new();
        messages.take(1, bytes, &mut sightings)?;
        Ok(sightings)
    }

    #[test]
    fn the_record_of_the_rfc_opens_though_split_over_packets() {
        let mut opener = keys().opener(connection(), &bytes(RECORD)).unwrap();
        let expected: Vec<u8> = (0..50).chain([super::APPLICATION_DATA]).collect();
        assert_eq!(opener.1, expected);
        assert_eq!(opener.0.open(&bytes(CLOSE)).unwrap(), [1, 0, 21]);

        let mut messages = messages();
        // One of the handshake, which no secret of application data opens, comes first.
        let handshake = bytes(&format!("1703030013{}", "22".repeat(19)));
        let record = bytes(RECORD);
        assert_eq!(take(&mut messages, &[&handshake, &record[..3]].concat()).unwrap(), []);
        assert!(messages.opener.is_none());
        assert_eq!(take(&mut messages, &record[3..20]).unwrap(), []);
        let error = take(&mut messages, &record[20..]).unwrap_err();
        assert!(format!("{error:#}").contains("no HTTP/1 request"), "{error:#}");
        assert!(messages.opener.is_some());
    }

    #[test]
    fn a_record_missing_between_others_is_an_error() {
        let mut messages = messages();
        messages.opener = keys().opener(connection(), &bytes(RECORD)).map(|(opener, _)| Box::new(opener));
        // The alert with which the client ends is no data, but opens.
        assert_eq!(take(&mut messages, &bytes(CLOSE)).unwrap(), []);
        assert!(take(&mut messages, &bytes(CLOSE)).is_err());
    }

    #[test]
    fn a_secret_that_is_none_is_refused() {
        assert!(KeyLog::read("CLIENT_TRAFFIC_SECRET_0 00 xy").is_err());
        assert!(KeyLog::read("CLIENT_TRAFFIC_SECRET_0 00").is_err());
    }
}
