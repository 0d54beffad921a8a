//! The secure link alone: who may talk, what counts as the same bytes, and when it is over.

mod wire_support;

use bytes::{Bytes, BytesMut};
use driftline_extent::ReplicaId;
use driftline_tests::{
    link::Random,
    session::{Script, run},
};
use driftline_wire::{
    Coding, DataPart, Hello, HelloError, Link, LinkError, LinkEvent, Message, Peer, limits,
};
use wire_support::{SOURCE, TARGET, full_copy, link, public, push_links, target};

const REPLICA: ReplicaId = ReplicaId([1; 16]);

/// Everything that a link has to send, frame by frame.
fn transmit(link: &mut Link) -> Vec<Bytes> {
    std::iter::from_fn(|| link.poll_transmit()).collect()
}

/// What a link makes of some bytes: its events, and its error if it has one.
fn feed(link: &mut Link, bytes: &[u8], now_ms: u64) -> (Vec<LinkEvent>, Option<LinkError>) {
    let mut received = BytesMut::from(bytes);
    let mut events = Vec::new();
    loop {
        match link.handle(&mut received, now_ms) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, None),
            Err(error) => return (events, Some(error)),
        }
    }
}

/// Carries bytes between two links until neither has any. Panics if one fails.
fn exchange(a: &mut Link, b: &mut Link, now_ms: u64) -> Vec<LinkEvent> {
    let mut all = Vec::new();
    loop {
        let (to_b, to_a) = (transmit(a).concat(), transmit(b).concat());
        if to_a.is_empty() && to_b.is_empty() {
            return all;
        }
        for (link, bytes) in [(&mut *a, to_a), (&mut *b, to_b)] {
            let (events, error) = feed(link, &bytes, now_ms);
            assert!(error.is_none(), "{error:?}");
            all.extend(events);
        }
    }
}

/// Two links that are open and know their pair. Same seed, same bytes.
fn open_pair(seed: u64) -> (Link, Link) {
    let (mut source, mut target) = push_links(seed);
    let events = exchange(&mut source, &mut target, 0);
    let opened = |who| {
        let peer = public(who);
        events.iter().any(|e| matches!(e, LinkEvent::Open { peer: p, version: 1 } if *p == peer))
    };
    assert!(events.len() == 2 && opened(SOURCE) && opened(TARGET));
    source.bind(&REPLICA);
    target.bind(&REPLICA);
    (source, target)
}

fn part(byte: u8, len: usize) -> DataPart {
    let body = Bytes::from(vec![byte; len]);
    DataPart { seq: 5, coding: Coding::Raw, raw_len: len as u32, body }
}

fn send(link: &mut Link, message: &Message, now_ms: u64) -> Vec<u8> {
    link.send(message, now_ms).unwrap();
    transmit(link).concat()
}

fn send_data(link: &mut Link, part: DataPart, now_ms: u64) -> Vec<u8> {
    link.send_data(part, now_ms).unwrap();
    transmit(link).concat()
}

#[test]
fn an_unpinned_key_is_refused_and_hears_nothing_but_a_hello() {
    let mut stranger = link(3, Peer::Dial(public(TARGET)), 1);
    let mut listener = link(TARGET, Peer::Listen(vec![public(SOURCE)]), 1);
    let hello = transmit(&mut listener).concat();
    assert_eq!(hello, Hello::OURS.to_bytes());
    feed(&mut stranger, &hello, 0);
    let (events, error) = feed(&mut listener, &transmit(&mut stranger).concat(), 0);
    assert!(events.is_empty());
    assert!(matches!(error, Some(LinkError::Unpinned(key)) if key == public(3)), "{error:?}");
    assert!(transmit(&mut listener).is_empty());
    // It stays dead, whatever comes.
    assert!(listener.send(&Message::Accept, 0).is_err());
    assert!(feed(&mut listener, &[0; 100], 0).1.is_some());
}

#[test]
fn a_responder_with_another_key_than_the_pinned_one_is_refused() {
    // The one that answers cannot even read the first message.
    let mut dialler = link(SOURCE, Peer::Dial(public(9)), 1);
    let mut listener = link(TARGET, Peer::Listen(vec![public(SOURCE)]), 1);
    feed(&mut dialler, &transmit(&mut listener).concat(), 0);
    let (events, error) = feed(&mut listener, &transmit(&mut dialler).concat(), 0);
    assert!(events.is_empty() && matches!(error, Some(LinkError::Handshake(_))), "{error:?}");
    assert!(transmit(&mut listener).is_empty());

    // Nor does the dialler believe an answer that was made for somebody else.
    let (mut other, mut honest) = push_links(2);
    let hellos = transmit(&mut honest);
    feed(&mut other, &hellos.concat(), 0);
    feed(&mut honest, &transmit(&mut other).concat(), 0);
    let answer = [hellos, transmit(&mut honest)].concat().concat();
    let mut dialler = link(SOURCE, Peer::Dial(public(9)), 1);
    let (events, error) = feed(&mut dialler, &answer, 0);
    assert!(events.is_empty() && matches!(error, Some(LinkError::Handshake(_))), "{error:?}");
}

#[test]
fn other_versions_are_negotiated_or_refused_in_words() {
    let hello = |version_min, version_max, features| {
        Hello { version_min, version_max, features }.to_bytes()
    };
    let heard = |bytes: [u8; 16]| {
        let (mut dialler, _) = push_links(1);
        transmit(&mut dialler);
        let error = feed(&mut dialler, &bytes, 0).1;
        (error, transmit(&mut dialler).len())
    };
    // A newer peer that still speaks our version, with abilities that we have not.
    assert!(matches!(heard(hello(1, 7, 0xffff_ffff)), (None, 1)));
    let (error, answered) = heard(hello(2, 7, 0));
    assert_eq!(answered, 0);
    assert!(matches!(
        error,
        Some(LinkError::Hello(HelloError::NoCommonVersion { peer_min: 2, peer_max: 7 }))
    ));
    assert!(error.unwrap().to_string().contains("versions 2 to 7"));
    let malformed = |bytes| {
        let (error, answered) = heard(bytes);
        answered == 0 && matches!(error, Some(LinkError::Hello(HelloError::Malformed(_))))
    };
    assert!(malformed(hello(0, 1, 0)) && malformed(hello(3, 2, 0)));
    let (error, answered) = heard(*b"SSH-2.0-OpenSSH_");
    assert_eq!(answered, 0);
    assert!(matches!(error, Some(LinkError::Hello(HelloError::NotDriftline))));
}

/// A whole recorded push of the first image: hello to done, towards the target and back.
fn recorded(seed: u64) -> (Vec<Bytes>, Vec<Bytes>) {
    let went = run(push_links(seed), &mut full_copy(), None, target(1), &Script::default());
    assert!(went.source.is_ok() && went.target.is_ok());
    (went.to_target, went.to_source)
}

#[test]
fn a_replayed_initiator_gets_no_state_and_no_open() {
    let (to_target, _) = recorded(1);
    // A listener of another time draws other ephemeral keys.
    let (_, mut listener) = push_links(2);
    let (events, error) = feed(&mut listener, &to_target[..2].concat(), 0);
    assert!(events.is_empty() && error.is_none());
    // It has answered the handshake, and says nothing more: hello, message 2, its key.
    assert_eq!(transmit(&mut listener).len(), 3);
    for frame in &to_target[2..] {
        let (events, error) = feed(&mut listener, frame, 0);
        assert!(events.is_empty() && error.is_some());
    }
    assert!(transmit(&mut listener).is_empty());
    // Without any further frame the handshake runs out of time.
    let (_, mut listener) = push_links(2);
    feed(&mut listener, &to_target[..2].concat(), 0);
    assert!(listener.send(&Message::Accept, 0).is_err());
    assert!(listener.handle_timeout(limits::HANDSHAKE_MS_MAX - 1).is_ok());
    assert!(matches!(
        listener.handle_timeout(limits::HANDSHAKE_MS_MAX),
        Err(LinkError::HandshakeTimeout)
    ));
}

/// What one end of a recorded session hears when these bytes come to it. It binds when it
/// would have: the target after the request, the source after the state.
fn replay(mut link: Link, bytes: &[u8]) -> (Vec<String>, bool) {
    let mut received = BytesMut::from(bytes);
    let mut heard = Vec::new();
    loop {
        match link.handle(&mut received, 0) {
            Ok(Some(event)) => {
                if let LinkEvent::Message(Message::Request { .. } | Message::State(_)) = event {
                    link.bind(&REPLICA);
                }
                heard.push(format!("{event:?}"));
            }
            // Bytes that wait for more, at the end of all, are a frame cut short.
            Ok(None) => return (heard, received.is_empty()),
            Err(_) => return (heard, false),
        }
    }
}

/// Replays a recorded direction with each of these bits wrong.
fn flip(end: impl Fn() -> Link, sent: &[Bytes], bits: impl Iterator<Item = usize>) {
    let mut bytes = sent.concat();
    let (clean, whole) = replay(end(), &bytes);
    assert!(whole && clean.len() > 3, "{clean:?}");
    for bit in bits {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (heard, whole) = replay(end(), &bytes);
        assert!(!whole, "bit {bit} was not noticed");
        assert!(heard.len() < clean.len() && clean.starts_with(&heard), "bit {bit}: {heard:?}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// A session as short as can be, with a control and a bulk frame each way there is one.
fn short() -> (Vec<Bytes>, Vec<Bytes>) {
    let (mut source, mut target) = push_links(1);
    let (mut to_target, mut to_source) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (forth, back) = (transmit(&mut source), transmit(&mut target));
        feed(&mut target, &forth.concat(), 0);
        feed(&mut source, &back.concat(), 0);
        to_target.extend(forth);
        to_source.extend(back);
    }
    let volume = "v".to_owned();
    source
        .send(&Message::Request { verb: driftline_wire::Verb::Push, volume, like: None }, 0)
        .unwrap();
    let state = driftline_extent::Target::state(&wire_support::target(1));
    target.send(&Message::State(Box::new(state)), 0).unwrap();
    source.bind(&REPLICA);
    target.bind(&REPLICA);
    source.send_data(part(9, 20), 0).unwrap();
    source.send(&Message::Done, 0).unwrap();
    target.send(&Message::Applied { seq: 5 }, 0).unwrap();
    target.send(&Message::Done, 0).unwrap();
    to_target.extend(transmit(&mut source));
    to_source.extend(transmit(&mut target));
    (to_target, to_source)
}

#[test]
fn every_flipped_bit_of_a_short_session_to_the_target_is_noticed() {
    let sent = short().0;
    let bits = 8 * sent.concat().len();
    flip(|| push_links(1).1, &sent, 0..bits);
}

#[test]
fn every_flipped_bit_of_a_short_session_to_the_source_is_noticed() {
    let sent = short().1;
    let bits = 8 * sent.concat().len();
    flip(|| push_links(1).0, &sent, 0..bits);
}

#[test]
fn flipped_bits_of_a_long_session_are_noticed() {
    let (to_target, to_source) = recorded(1);
    // All of each header, and some of each body.
    let sample = |sent: &[Bytes], seed| {
        let mut random = Random(seed);
        let mut start = 0;
        let mut bits = Vec::new();
        for frame in sent {
            bits.extend(
                (0..192).step_by(5).filter(|bit| *bit < 8 * frame.len()).map(|b| start + b),
            );
            bits.extend((0..8).map(|_| start + random.below(8 * frame.len())));
            start += 8 * frame.len();
        }
        bits
    };
    flip(|| push_links(1).1, &to_target, sample(&to_target, 1).into_iter());
    flip(|| push_links(1).0, &to_source, sample(&to_source, 2).into_iter());
}

#[test]
fn frames_of_another_session_or_direction_do_not_open() {
    for data in [false, true] {
        let say = |link: &mut Link| match data {
            true => send_data(link, part(1, 100), 0),
            false => send(link, &Message::Done, 0),
        };
        // Same keys, same place in the sequence, another handshake.
        let (mut other_replicas, _) = open_pair(2);
        let (_, mut target) = open_pair(1);
        let (events, error) = feed(&mut target, &say(&mut other_replicas), 0);
        assert!(events.is_empty() && error.is_some(), "{error:?}");

        // What a side said comes back to it.
        let (mut source, _) = open_pair(1);
        let said = say(&mut source);
        let (events, error) = feed(&mut source, &said, 0);
        assert!(events.is_empty() && matches!(error, Some(LinkError::Crypto)), "{error:?}");
    }
}

#[test]
fn frames_of_another_pair_of_volumes_are_refused() {
    for data in [false, true] {
        let (mut source, mut target) = open_pair(1);
        source.bind(&ReplicaId([2; 16]));
        let said = match data {
            true => send_data(&mut source, part(1, 100), 0),
            false => send(&mut source, &Message::Done, 0),
        };
        let (events, error) = feed(&mut target, &said, 0);
        assert!(events.is_empty() && matches!(error, Some(LinkError::Pair)), "{error:?}");
    }
    // Before there is a pair, nothing may name one.
    let (mut source, mut target) = push_links(1);
    exchange(&mut source, &mut target, 0);
    source.bind(&REPLICA);
    let (_, error) = feed(&mut target, &send(&mut source, &Message::Done, 0), 0);
    assert!(matches!(error, Some(LinkError::Pair)), "{error:?}");
    // A refusal and a sign of life may come from one that has not heard of the pair.
    let (mut source, mut target) = push_links(1);
    exchange(&mut source, &mut target, 0);
    target.bind(&REPLICA);
    source.handle_timeout(limits::KEEPALIVE_MS).unwrap();
    let (reason, detail) = (driftline_extent::Reason::Denied, String::new());
    let said = send(&mut source, &Message::Refuse { reason, detail }, 0);
    let (events, error) = feed(&mut target, &said, 0);
    assert!(error.is_none());
    assert!(matches!(events.as_slice(), [LinkEvent::Message(Message::Refuse { .. })]));
}

/// The rekey of one direction at this moment, and what a twin that did not rekey would say.
fn rekeyed(prepare: impl Fn(&mut Link), now_ms: u64) {
    let after = |link: &mut Link, data: bool| match data {
        true => send_data(link, part(1, 100), now_ms),
        false => send(link, &Message::Done, now_ms),
    };
    for data in [false, true] {
        let (mut source, mut target) = open_pair(1);
        let (mut twin, _) = open_pair(1);
        let said = send(&mut source, &Message::Accept, 0);
        assert_eq!(said, send(&mut twin, &Message::Accept, 0), "twins speak alike");
        feed(&mut target, &said, 0);

        prepare(&mut source);
        let mut bytes = BytesMut::from(after(&mut source, data).as_slice());
        let rekey = bytes.split_to(24 + 16 + 33 + 16);
        let (events, error) = feed(&mut target, &rekey, now_ms);
        assert!(events.is_empty() && error.is_none(), "{error:?}");

        // The same frame under the old key, at the right place in the sequence: the twin
        // has said one thing more as well.
        send(&mut twin, &Message::Accept, 0);
        let old = match data {
            true => send_data(&mut twin, part(1, 100), 0),
            false => send(&mut twin, &Message::Done, 0),
        };
        assert_eq!(old[..24], bytes[..24], "the headers are the same");
        let (_, mut deceived) = open_pair(1);
        feed(&mut deceived, &said, 0);
        feed(&mut deceived, &rekey, now_ms);
        let (events, error) = feed(&mut deceived, &old, now_ms);
        assert!(events.is_empty() && matches!(error, Some(LinkError::Crypto)), "{error:?}");

        let (events, error) = feed(&mut target, &bytes, now_ms);
        assert!(events.len() == 1 && error.is_none(), "{error:?}");
        // The other direction has its own key, and its own time.
        let (events, error) = feed(&mut source, &send_data(&mut target, part(2, 50), 0), now_ms);
        assert!(events.len() == 1 && error.is_none(), "{error:?}");
    }
}

#[test]
fn a_direction_is_rekeyed_after_its_bytes_and_the_old_key_opens_nothing() {
    rekeyed(|link| link.count_sealed(limits::REKEY_BYTES), 0);
}

#[test]
fn a_direction_is_rekeyed_after_its_time_and_the_old_key_opens_nothing() {
    rekeyed(|_| {}, limits::REKEY_MS);
}

#[test]
fn nothing_is_rekeyed_early_and_not_twice() {
    let (mut source, _) = open_pair(1);
    source.count_sealed(limits::REKEY_BYTES - 1);
    source.send(&Message::Accept, limits::REKEY_MS - 1).unwrap();
    assert_eq!(transmit(&mut source).len(), 1);
    // The bytes of this frame are over the limit; the next one comes with a new key.
    for frames in [1, 2, 1] {
        source.send_data(part(1, 10), limits::REKEY_MS - 1).unwrap();
        assert_eq!(transmit(&mut source).len(), frames);
    }
    // Both directions, many times over, while the other goes on.
    let (mut source, mut target) = open_pair(1);
    for round in 1..20 {
        let now = round * limits::REKEY_MS / 2;
        for data in [true, false] {
            let say = |link: &mut Link| match data {
                true => send_data(link, part(round as u8, 1000), now),
                false => send(link, &Message::Accept, now),
            };
            assert_eq!(feed(&mut target, &say(&mut source), now).0.len(), 1);
            assert_eq!(feed(&mut source, &say(&mut target), now).0.len(), 1);
        }
    }
}

#[test]
fn a_link_shows_that_it_lives_and_notices_silence() {
    let (mut source, mut target) = open_pair(1);
    source.handle_timeout(limits::KEEPALIVE_MS - 1).unwrap();
    assert!(transmit(&mut source).is_empty());
    source.handle_timeout(limits::KEEPALIVE_MS).unwrap();
    let sign = transmit(&mut source);
    assert_eq!(sign.len(), 1);
    let (events, error) = feed(&mut target, &sign[0], limits::KEEPALIVE_MS);
    assert!(events.is_empty() && error.is_none());

    // The target has heard something at ten seconds, the source nothing since the start.
    assert!(source.handle_timeout(limits::SILENCE_MS_MAX - 1).is_ok());
    assert!(matches!(source.handle_timeout(limits::SILENCE_MS_MAX), Err(LinkError::Silent)));
    let end = limits::KEEPALIVE_MS + limits::SILENCE_MS_MAX;
    assert!(target.handle_timeout(end - 1).is_ok());
    assert!(matches!(target.handle_timeout(end), Err(LinkError::Silent)));
    assert!(matches!(target.send(&Message::Done, end), Err(LinkError::Failed)));

    // Two that have nothing to say live on by their signs alone.
    let (mut source, mut target) = open_pair(1);
    for now in (0..3 * limits::SILENCE_MS_MAX).step_by(1000) {
        source.handle_timeout(now).unwrap();
        target.handle_timeout(now).unwrap();
        assert!(exchange(&mut source, &mut target, now).is_empty());
    }
}

#[test]
fn talking_slowly_does_not_keep_a_handshake_alive() {
    // One byte every hundred milliseconds: hello and handshake would take longer than allowed.
    let (mut source, listener) = push_links(1);
    let (_, mut stuck) = push_links(1);
    feed(&mut source, &Hello::OURS.to_bytes(), 0);
    let bytes = transmit(&mut source).concat();
    let mut slow = listener;
    let mut received = BytesMut::new();
    let mut ended = None;
    for (i, byte) in bytes.iter().cycle().enumerate() {
        let now = 200 * i as u64;
        received.extend_from_slice(&[*byte]);
        if i < bytes.len() - 1 {
            assert!(matches!(slow.handle(&mut received, now), Ok(None)));
        }
        if slow.handle_timeout(now).is_err() {
            ended = Some(now);
            break;
        }
    }
    assert_eq!(ended, Some(limits::HANDSHAKE_MS_MAX));
    // One that says nothing at all.
    assert!(stuck.handle_timeout(limits::HANDSHAKE_MS_MAX - 1).is_ok());
    assert!(matches!(
        stuck.handle_timeout(limits::HANDSHAKE_MS_MAX),
        Err(LinkError::HandshakeTimeout)
    ));
}

#[test]
fn a_frame_that_takes_minutes_shows_that_its_peer_lives() {
    // At 2 KiB/s a frame of 256 KiB takes longer than the longest silence.
    let (mut source, mut target) = open_pair(1);
    let frame = send_data(&mut source, part(7, 256 << 10), 0);
    let mut received = BytesMut::new();
    let mut now = 0;
    for piece in frame.chunks(2 << 10) {
        received.extend_from_slice(piece);
        target.handle_timeout(now).unwrap();
        let event = target.handle(&mut received, now).unwrap();
        assert_eq!(event.is_some(), received.is_empty());
        now += 1000;
    }
    assert!(now > 2 * limits::SILENCE_MS_MAX && received.is_empty());
    // Half a frame does not keep it alive for ever: no byte came since.
    assert!(target.handle(&mut received, now).unwrap().is_none());
    let error = target.handle_timeout(now + limits::SILENCE_MS_MAX);
    assert!(matches!(error, Err(LinkError::Silent)), "{error:?}");
}

#[test]
fn keep_alives_without_end_are_cut_off_and_late_ones_are_not() {
    let (mut source, mut target) = open_pair(1);
    let mut sign = |now| send(&mut source, &Message::KeepAlive, now);
    for count in 0..limits::SIGNS_AT_ONCE_MAX {
        let (events, error) = feed(&mut target, &sign(0), 0);
        assert!(events.is_empty() && error.is_none(), "after {count}: {error:?}");
    }
    let (_, error) = feed(&mut target, &sign(0), 0);
    assert!(matches!(error, Some(LinkError::Flood)), "{error:?}");

    // Those of an hour in which nothing was read arrive at once, and are as many as are allowed.
    let (mut source, mut target) = open_pair(1);
    let hour = 3_600_000;
    let signs = (1..=hour / limits::KEEPALIVE_MS)
        .flat_map(|count| send(&mut source, &Message::KeepAlive, count * limits::KEEPALIVE_MS));
    let (events, error) = feed(&mut target, &signs.collect::<Vec<_>>(), hour);
    assert!(events.is_empty() && error.is_none(), "{error:?}");
}

#[test]
fn a_listener_without_room_says_so_and_only_to_a_dialler() {
    let (mut source, mut listener) = push_links(1);
    let (_, error) = feed(&mut source, &Hello::FULL.to_bytes(), 0);
    assert!(matches!(error, Some(LinkError::Full)), "{error:?}");
    let (_, error) = feed(&mut listener, &Hello::FULL.to_bytes(), 0);
    assert!(error.is_none(), "{error:?}");
}

#[test]
fn a_frame_has_its_place() {
    // Data before the link is open, a handshake after: well formed, and out of place.
    let header = |kind: u8, seq: u8| {
        let mut frame = [0; 24 + 16];
        (frame[0], frame[4], frame[8]) = (kind, 16, seq);
        frame
    };
    let hello = Hello::OURS.to_bytes();
    for (kind, name) in [(2, "control"), (3, "bulk")] {
        let (_, mut listener) = push_links(1);
        let (_, error) = feed(&mut listener, &[&hello[..], &header(kind, 0)].concat(), 0);
        assert!(matches!(error, Some(LinkError::Unexpected(kind)) if kind == name), "{error:?}");
    }
    // The dialler has sent its handshake and its key: two frames.
    let (_, mut target) = open_pair(1);
    let (_, error) = feed(&mut target, &header(1, 2), 0);
    assert!(matches!(error, Some(LinkError::Unexpected("handshake"))), "{error:?}");
    let (_, mut target) = open_pair(1);
    let (_, error) = feed(&mut target, &header(3, 1), 0);
    assert!(matches!(error, Some(LinkError::Sequence { got: 1, expected: 2 })), "{error:?}");
    // A message of the handshake carries nothing else.
    let (_, mut listener) = push_links(1);
    let mut long = vec![0; 24 + 65_535];
    (long[0], long[4], long[5]) = (1, 0xff, 0xff);
    let (_, error) = feed(&mut listener, &[&hello[..], &long].concat(), 0);
    assert!(matches!(error, Some(LinkError::Handshake(_))), "{error:?}");
}
