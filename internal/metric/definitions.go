// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package metric

// Metrics of every daemon.
var (
	ServerRequests = define(every, Counter, "sif_server_requests_total", "Requests to Consul, Vault and Nomad, by server (consul, vault, nomad) and result: answered, refused (status 4xx), failed (5xx), unreachable. Those that the daemon gave up do not count.", "server", "result")
)

// Metrics of the controller.
var (
	ControllerLeader      = define(controller, Gauge, "sif_controller_leader", "1 while this controller leads.")
	ControllerPeers       = define(controller, Gauge, "sif_controller_peers", "Other controllers that answer this one.")
	ControllerPeersAway   = define(controller, Gauge, "sif_controller_peers_away", "Other controllers that do not answer this one.")
	ControllerAge         = define(controller, Gauge, "sif_controller_age_seconds", "How old what this controller knows of the nodes can be: 0 while it leads, +Inf if it has heard of none yet.")
	ControllerRevision    = define(controller, Gauge, "sif_controller_revision", "Sequence of the revision in force.")
	ControllerDegraded    = define(controller, Gauge, "sif_controller_degraded", "Number of problems that sif status reports of the controller.")
	ControllerNodes       = define(controller, Gauge, "sif_controller_nodes", "Registered nodes.")
	ControllerAdmissions  = define(controller, Gauge, "sif_controller_admissions", "Live admissions.")
	ControllerCertificate = define(controller, Gauge, "sif_controller_certificate_expiry_seconds", "Unix time at which the controller's certificate expires.")
	ControllerKeyVersion  = define(controller, Gauge, "sif_controller_key_version", "Version of the fabric's signing key with which this controller has statements signed; 0 before it knows.")
	ControllerRequests    = define(controller, Counter, "sif_controller_requests_total", "API calls by route and error code; the code is ok if there was no error.", "route", "code")
	ControllerRefused     = define(controller, Counter, "sif_controller_refused_total", "Connections, calls and audit entries refused because of a limit, by limit.", "limit")
	ControllerAdmission   = define(controller, Histogram, "sif_controller_admission_seconds", "Time to grant an admission.").within(0.001, 14)
)

// Metrics of the nodes, which the controller that leads has of what they report.
var (
	NodeCertificate         = define(controller, Gauge, "sif_node_certificate_expiry_seconds", "Unix time at which the certificate of a daemon expires.", "node", "daemon")
	NodeLasts               = define(controller, Gauge, "sif_node_lasts_until_seconds", "Unix time at which the first of what a daemon holds expires: its certificate, or an admission or a service's certificate of an endpoint.", "node", "daemon")
	NodeReported            = define(controller, Gauge, "sif_node_reported_seconds", "Unix time of the last report of a daemon.", "node", "daemon")
	NodeRevocationsSequence = define(controller, Gauge, "sif_node_revocations_sequence", "Sequence of the list of removals and revocations that a daemon heeds.", "node", "daemon")
	NodeKeyVersion          = define(controller, Gauge, "sif_node_key_version", "Newest version of the fabric's signing key that a daemon knows.", "node", "daemon")
	NodeLinkKeyMade         = define(controller, Gauge, "sif_node_link_key_made_seconds", "Unix time at which the WireGuard key of a node's links was made.", "node", "daemon")
	RevocationsSequence     = define(controller, Gauge, "sif_revocations_sequence", "Sequence of the newest list of removals and revocations.")
	Revocations             = define(controller, Gauge, "sif_revocations", "What is removed or revoked, by kind.", "kind")
	RevocationsBehind       = define(controller, Gauge, "sif_revocations_behind", "Daemons that do not heed the newest list of removals and revocations.")

	LinkUp       = define(controller, Gauge, "sif_link_up", "1 unless the last probes of a link were lost.", "node", "peer", "family")
	LinkLoss     = define(controller, Gauge, "sif_link_loss_ratio", "Share of the last small packets of a link that were lost, by probes.", "node", "peer", "family")
	LinkRTT      = define(controller, Gauge, "sif_link_rtt_seconds", "Median round-trip time of a link, by probes.", "node", "peer", "family")
	LinkMTU      = define(controller, Gauge, "sif_link_mtu_bytes", "Largest packet that passed a link, by probes.", "node", "peer", "family")
	ZonePathUp   = define(controller, Gauge, "sif_zone_path_up", "1 unless the last probes of the paths between two zones were lost.", "from", "to", "family")
	ZonePathLoss = define(controller, Gauge, "sif_zone_path_loss_ratio", "Share of the last small packets of the paths between two zones that were lost, by probes.", "from", "to", "family")
	ZonePathRTT  = define(controller, Gauge, "sif_zone_path_rtt_seconds", "Median round-trip time of the paths between two zones, by probes.", "from", "to", "family")
	ZonePathMTU  = define(controller, Gauge, "sif_zone_path_mtu_bytes", "Largest packet that passed the paths between two zones, by probes.", "from", "to", "family")
)

// Metrics of agents and engines.
var (
	DaemonInfo        = define(node, Gauge, "sif_daemon_info", "1; the labels say which daemon this is.", "zone", "node", "daemon", "version")
	DaemonDegraded    = define(node, Gauge, "sif_daemon_degraded", "Problems that sif status reports of the daemon.")
	DaemonRevision    = define(node, Gauge, "sif_daemon_revision", "Sequence of the revision that the daemon enforces; sif_controller_revision has that in force.")
	DaemonRevocations = define(node, Gauge, "sif_daemon_revocations_sequence", "Sequence of the list of removals and revocations that the daemon heeds.")
	DaemonCertificate = define(node, Gauge, "sif_daemon_certificate_expiry_seconds", "Unix time at which the daemon's certificate expires.")
	DaemonLasts       = define(node, Gauge, "sif_daemon_lasts_until_seconds", "Unix time at which the first of what the daemon holds expires: its certificate, or an admission or a service's certificate of an endpoint.")
	DaemonComparison  = define(node, Gauge, "sif_daemon_comparison_age_seconds", "Time since the data path was compared with what must be in it.")
	DaemonRepaired    = define(node, Counter, "sif_daemon_repaired_total", "What others had changed on the node and was put back, by kind.", "kind")
	DaemonRefused     = define(node, Counter, "sif_daemon_refused_total", "Connections and calls of other daemons that were refused because of a limit, by reason.", "reason")
	DroppedPackets    = define(node, Counter, "sif_dropped_packets_total", "Packets that were dropped, by where (ebpf from-workload, ebpf to-workload, switch, nftables, dns, guest) and why; the reasons are those of sif status.", "where", "reason")
	LinkReceived      = define(node, Counter, "sif_link_received_bytes_total", "Bytes received from a node by a link; the label link is empty for links that are not declared.", "peer", "link")
	LinkSent          = define(node, Counter, "sif_link_sent_bytes_total", "Bytes sent to a node by a link.", "peer", "link")
	LinkHandshake     = define(node, Gauge, "sif_link_handshake_seconds", "Unix time of the last handshake with a node by a link.", "peer", "link")
)

// Metrics of agents.
var (
	AgentCNI         = define(agent, Histogram, "sif_agent_cni_duration_seconds", "Time to answer a CNI call, by command, and by result: done or failed.", "command", "result").within(0.005, 13)
	AgentTold        = define(agent, Counter, "sif_agent_told_total", "Answers to workloads about packets that were dropped, by kind: reset, prohibited; limited are those that were too many and not sent.", "kind")
	AgentEndpoints   = define(agent, Gauge, "sif_agent_endpoints", "Endpoints of the node, by service and by state: in_force, pending (not in force everywhere), withheld (DNS does not answer with it), revoked.", "service", "state")
	AgentWaiting     = define(agent, Gauge, "sif_agent_waiting", "Attached workloads outside Nomad that have no endpoint now.")
	AgentConnections = define(agent, Gauge, "sif_agent_connections", "Connections that endpoints of the node have opened, or externals to them, by contract; the contract is empty where none is needed.", "from", "to", "contract")
	AgentAudited     = define(agent, Counter, "sif_agent_audited_flows_total", "Flows that were allowed only because a contract or a service is in audit mode.", "from", "to", "contract")
)

// Metrics of processors.
var (
	ProcessorReady     = define(engine, Gauge, "sif_processor_ready", "1 while the processor's switch enforces what it should.")
	ProcessorDraining  = define(engine, Gauge, "sif_processor_draining", "1 while an operator wants no packets to pass by the processor.")
	ProcessorSilent    = define(engine, Gauge, "sif_processor_silent_tunnels", "Tunnels whose other end does not answer.")
	ProcessorUnreached = define(engine, Gauge, "sif_processor_unreached_nodes", "Workload nodes of the zone that do not answer the processor.")
)
