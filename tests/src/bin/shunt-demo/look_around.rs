// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands for a person who wants to look around in a world that was kept.

use anyhow::Result;
use shunt_tests::world::{World, agent_binary};

/// Ready to be copied to a shell.
pub fn commands(world: &World) -> Result<String> {
    let agent = agent_binary()?.display().to_string();
    let name = world.site().name();
    let directory = world.site().directory().display().to_string();
    let node = world.node("node-a");
    let bpffs = node.bpffs().display();
    let inside = |place: &str| format!("nsenter --net=/run/netns/{name}-{place}");
    Ok(format!(
        "\nThe world is still there. Requests from a pod and from outside:\n  \
           {client} curl http://10.96.0.80/\n  \
           {client} dig +short @10.96.0.10 answer.shunt.test\n  \
           {outside} curl http://172.20.0.11:30080/ http://[fd00:20::12]:30080/\n\
         What node-a's agent has written to the kernel, and what the programs do with a packet:\n  \
           {on_node} {agent} get services --bpffs {bpffs}\n  \
           {on_node} {agent} get backends --bpffs {bpffs}\n  \
           {on_node} {agent} get flows --bpffs {bpffs}\n  \
           {on_node} {agent} trace --from 10.244.1.90:4000 --to 10.96.0.80:80 --in-interface veth-client --bpffs {bpffs}\n\
         Change the Services of node-a (node-b has its own copy), and read what its agent says to that:\n  \
           editor {directory}/manifests-node-a/web-endpoints.yaml\n  \
           tail -f {directory}/agent-node-a.log\n\
         Look at links, routes, packets:\n  \
           {on_node} ip addr\n  \
           {on_node} tcpdump -ni eth0\n\
         Remove it:\n  \
           cargo xtask demo --remove",
        client = inside("client"),
        outside = inside("outside"),
        on_node = inside("node-a"),
    ))
}
