use super::*;

/// What a connection of this role says after control records of so many bytes, each written or not.
fn after(role: u32, records: &[(usize, bool)]) -> (bool, bool) {
    let mut socket = Socket { role, ..Socket::default() };
    let mut between = false;
    for &(bytes, written) in records {
        between = socket.note_record(bytes, written);
    }
    (socket.multiplexed >= MULTIPLEXED, between)
}

#[test]
fn control_records_show_that_a_connection_carries_several_messages() {
    // Short answers of the proxy's own, and one read in parts.
    assert_eq!(after(ROLE_ACCEPTED, &[(25, true), (40, true)]), (false, false));
    assert_eq!(after(ROLE_OPENED, &[(38 + 4, false)]), (false, false));
    // What is written before the response has gone on; acknowledged settings.
    assert_eq!(after(ROLE_OPENED, &[(13, true)]), (true, false));
    assert_eq!(after(ROLE_ACCEPTED, &[(9, false)]), (true, false));
    assert_eq!(after(ROLE_ACCEPTED, &[(55, true), (13, false)]), (true, false));
    assert_eq!(after(ROLE_ACCEPTED, &[(55, true), (13, false), (13, false)]), (true, true));
}

#[test]
fn settings_are_acknowledged_among_the_first_messages() {
    let socket = |settled| Socket { settled, ..Socket::default() };
    assert!((0..64).filter(|&bytes| socket(1).acknowledges_settings(bytes)).eq([9, 31, 38]));
    assert!(socket(OPENING_MESSAGES).acknowledges_settings(9));
    assert!(!socket(OPENING_MESSAGES + 1).acknowledges_settings(9));
}

#[test]
fn the_first_segment_that_is_noted_begins_where_its_connection_was_read_to() {
    const START: u32 = u32::MAX - 100;
    let mut socket = Socket { noted: 2, ..Socket::default() };
    socket.noted_ns[..2].copy_from_slice(&[10, 20]);
    socket.noted_end[..2].copy_from_slice(&[START.wrapping_add(1448), START.wrapping_add(1500)]);
    assert_eq!(socket.take_noted(START), (10, 1448));
    assert_eq!(socket.take_noted(START), (20, 52));
    assert_eq!(socket.noted_taken, socket.noted);
}
