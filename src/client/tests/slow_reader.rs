//! Readers that do not take their messages: how much of the memory they get.

use super::*;

const MEBIBYTE: usize = 1 << 20;

/// Only the number of messages was bounded, by the receive maximum, and not their size: by default
/// to 1,024 times the largest packet.
#[tokio::test]
async fn unread_messages_of_qos_1_and_2_are_bounded_in_bytes() {
    for overflow in [Overflow::Pause, Overflow::Drop] {
        let broker = Broker::start().await;
        let options = broker.options().inbound_queue(8192, 2 * MEBIBYTE).overflow(overflow);
        let (client, mut peer) = broker.client(options).await;
        let (subscription, _) = tokio::join!(client.subscribe("t"), peer.grant());
        let mut subscription = subscription.unwrap();
        let body = "x".repeat(MEBIBYTE);
        let mut sent = 0;
        // Until the sockets are full, which they would never be if all were read.
        while sent < 200 {
            let publish = peer.publish("t", QoS::AtLeastOnce, sent + 1, false, &body);
            if timeout(Duration::from_millis(300), publish).await.is_err() {
                break;
            }
            sent += 1;
        }
        assert!((2..100).contains(&sent), "{sent} MiB went into {overflow:?}");
        let mut taken = 0;
        while taken < sent {
            let message = timeout(SOON, subscription.recv()).await.unwrap().unwrap();
            assert_eq!(message.payload.len(), MEBIBYTE);
            taken += 1;
        }
        assert_eq!(client.dropped(), 0);
    }
}

/// Who publishes and waits for the acknowledgement before he takes the next message must not wait
/// for ever: it comes behind messages for which there is no room.
#[tokio::test]
async fn a_full_queue_does_not_keep_acknowledgements_out() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options().inbound_queue(8192, MEBIBYTE)).await;
    let (subscription, _) = tokio::join!(client.subscribe("t"), peer.grant());
    let mut subscription = subscription.unwrap();
    let body = "x".repeat(MEBIBYTE);
    let broker_side = async {
        for id in 1..=50 {
            peer.publish("t", QoS::AtLeastOnce, id, false, &body).await;
        }
        let id = peer.expect_publish().await.1.unwrap();
        peer.send(&Packet::PubAck(success(id))).await;
    };
    let publish = client.publish(message("m", QoS::AtLeastOnce));
    let (published, ()) =
        timeout(SOON, async { tokio::join!(publish, broker_side) }).await.unwrap();
    published.unwrap();
    for _ in 0..50 {
        timeout(SOON, subscription.recv()).await.unwrap().unwrap();
    }
}
