//! How a session opens: what the dialling side wants, and whether it may.

use std::future::Future;

use driftline_extent::TargetState;
use driftline_wire::{Message, SessionError, Verb};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Connection, Failure, TransportError};

/// Dialling side: asks for a volume and waits until it is granted. `like` names one of the
/// listener's that what is pushed is like.
pub async fn request<S: AsyncRead + AsyncWrite>(
    connection: &mut Connection<S>,
    verb: Verb,
    volume: &str,
    like: Option<&str>,
) -> Result<(), TransportError> {
    let (volume, like) = (volume.to_owned(), like.map(str::to_owned));
    connection.send(&Message::Request { verb, volume, like })?;
    match connection.message().await? {
        Message::Accept => Ok(()),
        other => Err(SessionError::out_of_place(other, "accept was due").into()),
    }
}

/// Dialling side: waits for the state of the volume it asked about.
pub async fn receive_state<S: AsyncRead + AsyncWrite>(
    connection: &mut Connection<S>,
) -> Result<TargetState, TransportError> {
    match connection.message().await? {
        Message::State(state) => Ok(*state),
        other => Err(SessionError::out_of_place(other, "a state was due").into()),
    }
}

/// Listening side: waits for what the peer wants, of which volume, and what that is like.
pub async fn receive_request<S: AsyncRead + AsyncWrite>(
    connection: &mut Connection<S>,
) -> Result<(Verb, String, Option<String>), TransportError> {
    match connection.message().await? {
        Message::Request { verb, volume, like } => Ok((verb, volume, like)),
        other => Err(SessionError::out_of_place(other, "a request was due").into()),
    }
}

/// Listening side: gets something ready while the link stays alive, then accepts, or refuses
/// and hangs up.
pub async fn answer<S, T>(
    mut connection: Connection<S>,
    ready: impl Future<Output = Result<T, Failure>>,
) -> Result<(Connection<S>, T), TransportError>
where
    S: AsyncRead + AsyncWrite,
{
    match connection.keep_alive_while(ready).await? {
        Ok(ready) => {
            connection.send(&Message::Accept)?;
            Ok((connection, ready))
        }
        Err(failure) => {
            let Failure { reason, detail } = failure.clone();
            connection.send(&Message::Refuse { reason, detail })?;
            connection.close().await?;
            Err(failure.into())
        }
    }
}

/// Listening side: tells the state of a volume, and hangs up.
pub async fn send_state<S: AsyncRead + AsyncWrite>(
    mut connection: Connection<S>,
    state: TargetState,
) -> Result<(), TransportError> {
    connection.send(&Message::State(Box::new(state)))?;
    connection.close().await
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc, time::Duration};

    use driftline_extent::{
        Accepts, Change, Finish, Generation, POINTS_MAX, Plan, Point, Reason, Source, Volume,
    };
    use driftline_wire::{LinkError, Peer, SecretKey};
    use tokio::{io::DuplexStream, time::sleep};

    use super::*;
    use crate::{SharedLimit, SourceJob, error::No, serve_source};

    type Duplex = Connection<DuplexStream>;

    /// Two ends of an open connection: the dialler's, and the listener's.
    async fn open() -> (Duplex, Duplex) {
        let secret = |who| SecretKey::from_random([who; 32]);
        let (near, far) = tokio::io::duplex(1 << 20);
        let (dial, listen) =
            (Peer::Dial(secret(2).public()), Peer::Listen(vec![secret(1).public()]));
        let dialling = async {
            let (mut near, _) = Connection::open(near, secret(1), dial, Arc::default()).await?;
            // The listener waits for its last words.
            while !near.is_flushed() {
                near.step().await?;
            }
            Ok::<_, TransportError>(near)
        };
        let listening = Connection::open(far, secret(2), listen, Arc::default());
        let (near, far) = tokio::join!(dialling, listening);
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_made_to_wait_for_minutes_lives_and_is_served() {
        let (mut dialler, mut listener) = open().await;
        let asking = tokio::spawn(async move {
            request(&mut dialler, Verb::Push, "vm", None).await.map(|()| dialler)
        });
        receive_request(&mut listener).await.unwrap();
        // Recovery, a busy volume, a free session: all of them may take longer than the silence
        // after which a peer counts as gone.
        let ready = async {
            sleep(Duration::from_secs(20 * 60)).await;
            Ok(7)
        };
        let (listener, ready) = answer(listener, ready).await.unwrap();
        assert_eq!(ready, 7);
        // The answer goes out while the connection is waited on.
        let closing = tokio::spawn(listener.close());
        let dialler = asking.await.unwrap().unwrap();
        drop(dialler);
        closing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_peer_sends_while_it_waits_is_not_kept() {
        let (mut dialler, mut listener) = open().await;
        dialler
            .send(&Message::Request { verb: Verb::Push, volume: "vm".into(), like: None })
            .unwrap();
        // As many as there is room for on the way, and without end.
        let flood = tokio::spawn(async move {
            loop {
                if dialler.send(&Message::Accept).is_err() || dialler.step().await.is_err() {
                    return;
                }
            }
        });
        receive_request(&mut listener).await.unwrap();
        let error = answer(listener, pending::<Result<(), Failure>>()).await.unwrap_err();
        let unexpected =
            SessionError::Unexpected { message: "accept", state: "it waited for an answer" };
        assert!(matches!(&error, TransportError::Session(e) if *e == unexpected), "{error:?}");
        flood.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn keep_alives_without_end_do_not_keep_a_listener_busy() {
        let (mut dialler, listener) = open().await;
        let flood = tokio::spawn(async move {
            while dialler.send(&Message::KeepAlive).is_ok() && dialler.step().await.is_ok() {}
        });
        let error = answer(listener, pending::<Result<(), Failure>>()).await.unwrap_err();
        assert!(matches!(error, TransportError::Link(LinkError::Flood)), "{error:?}");
        flood.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_smallest_bandwidth_that_is_allowed_carries_the_largest_frames() {
        let (mut slow, mut other) = open().await;
        slow.limit_rate(SharedLimit::new(1 << 10));
        let started = tokio::time::Instant::now();
        let text = "x".repeat(1024);
        let refuse = Message::Refuse { reason: Reason::Failed, detail: text };
        let state = || {
            let token = "a".repeat(8192);
            let point = |guid| Point { guid, name: "p".repeat(255) };
            let points = (0..POINTS_MAX.into()).map(point).collect();
            let accepts = Accepts::Stream { token: Some(token), points };
            Message::State(Box::new(TargetState { accepts, ..TargetState::nothing() }))
        };
        let sending = tokio::spawn(async move {
            for _ in 0..2 {
                slow.send(&state()).unwrap();
            }
            slow.send(&refuse).unwrap();
            slow.close().await
        });
        for _ in 0..2 {
            assert_eq!(other.message().await.unwrap(), state());
        }
        assert_eq!(other.message().await.unwrap().name(), "refuse");
        assert!(started.elapsed() > Duration::from_secs(120), "{:?}", started.elapsed());
        sending.abort();
    }

    /// A source that never comes back from its storage.
    struct Hung;

    impl Source for Hung {
        type Error = No;

        fn plan(&mut self, _: Option<&Generation>) -> Result<Plan, No> {
            loop {
                std::thread::park();
            }
        }

        fn next_change(&mut self, _: u64) -> Result<Option<Change>, No> {
            Err(No)
        }

        fn finish(&mut self) -> Result<Finish, No> {
            Err(No)
        }

        fn bytes_read(&self) -> u64 {
            0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_hangs_fails_its_session_and_tells_the_peer() {
        let (source, mut target) = open().await;
        let patience = Duration::from_secs(30 * 60);
        let volume: Option<Arc<dyn Volume + Send + Sync>> = None;
        let job = SourceJob {
            source: Hung,
            volume,
            overwrite: false,
            compare: false,
            compression: None,
            auditor: None,
            patience,
            arrived: crate::deliver::LastSeen::Nothing,
            held: None,
        };
        let started = tokio::time::Instant::now();
        let serving = tokio::spawn(serve_source(source, job));
        target.send(&Message::State(Box::new(TargetState::nothing()))).unwrap();
        target.bind(&TargetState::nothing().replica);
        let told = target.message().await.unwrap();
        let Message::Refuse { reason, detail } = told else { panic!("{told:?}") };
        assert_eq!(reason, Reason::SourceUnreadable);
        assert!(detail.contains("nothing for 1800 s"), "{detail}");
        assert!(started.elapsed() >= patience && started.elapsed() < 2 * patience);
        drop(target);
        let failure = serving.await.unwrap().unwrap_err();
        assert_eq!(failure.reason(), Some(Reason::SourceUnreadable));
    }
}
