//! The two machines where the source asks about the data sets of a tree before it plans.

use driftline_extent::{
    Accepts, Ask, Begin, Generation, Offer, Plan, PlanKind, ReplicaId, Standing, TargetState,
};
use driftline_wire::{Message, Receiver, ReceiverOutput, Sender, SenderOutput, SessionError};

fn state() -> TargetState {
    let accepts = Accepts::Stream { token: None, points: Vec::new() };
    let (replica, generation) = (ReplicaId([1; 16]), Some(Generation::zfs(1)));
    TargetState { replica, chunk_key: [2; 32], generation, accepts, ..TargetState::nothing() }
}

fn offer(kind: PlanKind) -> Offer {
    let (base, tip, standing) = (Some(Generation::zfs(1)), None, Standing::Proven);
    let plan = Plan { kind, volume: None, base, tip, size: None, standing, bytes_expected: 0 };
    Offer { plan, overwrite: false }
}

fn outputs(receiver: &mut Receiver) -> Vec<ReceiverOutput> {
    std::iter::from_fn(|| receiver.poll()).collect()
}

/// A receiver in the middle of a stream.
fn receiving() -> Receiver {
    let mut receiver = Receiver::new(state());
    receiver.handle_message(Message::Offer(offer(PlanKind::Stream))).unwrap();
    receiver.handle_begun(Begin { from: 0 });
    receiver
}

fn violation<T: std::fmt::Debug>(result: Result<T, SessionError>, says: &str) {
    match result {
        Err(SessionError::Violation(why)) => assert!(why.contains(says), "{why}"),
        other => panic!("{other:?}"),
    }
}

fn unexpected<T: std::fmt::Debug>(result: Result<T, SessionError>) {
    assert!(matches!(result, Err(SessionError::Unexpected { .. })), "{result:?}");
}

#[test]
fn a_data_set_is_asked_about_only_where_an_offer_is_due() {
    let ask = Ask { member: "a/b".to_owned(), discard: true };
    let mut receiver = Receiver::new(state());
    outputs(&mut receiver);
    receiver.handle_message(Message::Ask(ask.clone())).unwrap();
    assert_eq!(outputs(&mut receiver), [ReceiverOutput::Answer(ask.clone())]);
    unexpected(receiver.handle_message(Message::Offer(offer(PlanKind::Stream))));
    let other = TargetState { generation: None, ..state() };
    receiver.handle_answered(other.clone());
    let told = ReceiverOutput::Send(Message::State(Box::new(other)));
    assert_eq!(outputs(&mut receiver), [told]);
    receiver.handle_message(Message::Offer(offer(PlanKind::Stream))).unwrap();
    unexpected(receiver.handle_message(Message::Ask(ask.clone())));
    unexpected(receiving().handle_message(Message::Ask(ask)));
}

#[test]
fn what_is_asked_about_is_planned_for_and_stays_the_same_replica() {
    let ask = Ask { member: "a".to_owned(), discard: false };
    let told = |state: TargetState| Message::State(Box::new(state));
    let asking = || {
        let mut sender = Sender::new();
        sender.handle_message(told(state())).unwrap();
        while sender.poll().is_some() {}
        sender.handle_ask(ask.clone());
        let asked = Some(SenderOutput::Send(Message::Ask(ask.clone())));
        assert_eq!(sender.poll(), asked);
        sender
    };
    let other = TargetState { generation: None, ..state() };
    let mut sender = asking();
    sender.handle_message(told(other.clone())).unwrap();
    assert_eq!(sender.poll(), Some(SenderOutput::Plan(Box::new(other.clone()))));
    let foreign = [
        TargetState { replica: ReplicaId([9; 16]), ..other.clone() },
        TargetState { chunk_key: [9; 32], ..other },
    ];
    for foreign in foreign {
        violation(asking().handle_message(told(foreign)), "another replica");
    }
    unexpected(asking().handle_message(Message::Begin(Begin { from: 0 })));
}
