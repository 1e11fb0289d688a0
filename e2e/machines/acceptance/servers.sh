#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Sets up Consul, Vault and Nomad as their tutorials have it for production: gossip encryption, TLS with a CA for each
# product, ACLs that deny by default, and a machine that is named as a cloud names it. Nothing here knows the fabric.
# Vault is in use by somebody else already: its usual mounts are taken.
#
# servers.sh up DIR BIN starts the servers in the current network namespace, with their files in DIR and the programs
# of BIN. They end with the namespace. It writes
#   DIR/operator.env  what an operator exports to talk to them as administrator
#   DIR/ca/           the three CAs
#   DIR/client/       the files of a client machine: units and configurations as HashiCorp's packages have them
set -euo pipefail

[[ ${1:-} == up && $# == 3 ]] || { echo "usage: servers.sh up DIR BIN" >&2 && exit 2; }
dir=$2 bin=$3
address=10.20.0.10
name=ip-10-20-0-10.ec2.internal

mkdir -p "$dir"/{ca,tls,consul,vault,nomad,client}
cd "$dir"
unset AWS_CA_BUNDLE "${!CONSUL_@}" "${!VAULT_@}" "${!NOMAD_@}"
export HOME=$dir

# patiently COMMAND... runs a command until it succeeds, for at most a minute.
patiently() {
  local try
  for ((try = 0; try < 240; try++)); do
    if "$@" >.answer 2>&1; then
      cat .answer
      return
    fi
    sleep 0.25
  done
  cat .answer >&2
  echo "servers.sh: $* did not succeed within a minute" >&2
  return 1
}

# start NAME PROGRAM... starts a server.
start() {
  local name=$1
  shift
  setsid "$@" >"$name.log" 2>&1 </dev/null &
}

ip link add servers type bridge
ip address add $address/24 dev servers
ip link set servers up

### TLS ###############################################################################################################
(
  cd tls
  "$bin/consul" tls ca create -days=365 >/dev/null
  "$bin/consul" tls cert create -server -dc=dc1 -node="${name%%.*}" -additional-ipaddress=$address -additional-dnsname="consul.example.internal" >/dev/null
  "$bin/nomad" tls ca create -days=365 >/dev/null
  "$bin/nomad" tls cert create -server -region=global -additional-ipaddress=$address -additional-dnsname="nomad.example.internal" >/dev/null
  "$bin/nomad" tls cert create -client -region=global >/dev/null
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj "/CN=Example Corp. Root R1" \
    -keyout vault-ca-key.pem -out vault-ca.pem 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=vault.example.internal" -keyout vault-key.pem -out vault.csr 2>/dev/null
  openssl x509 -req -in vault.csr -CA vault-ca.pem -CAkey vault-ca-key.pem -CAcreateserial -days 365 -out vault.pem \
    -extfile <(echo "subjectAltName=DNS:vault.example.internal,IP:$address,IP:127.0.0.1") 2>/dev/null
)
cp tls/consul-agent-ca.pem tls/nomad-agent-ca.pem tls/vault-ca.pem ca/

### Consul ############################################################################################################
gossip=$("$bin/consul" keygen)
cat >consul.hcl <<END
datacenter     = "dc1"
node_name      = "$name"
data_dir       = "$dir/consul"
encrypt        = "$gossip"
server         = true
bootstrap_expect = 1
bind_addr      = "$address"
client_addr    = "127.0.0.1"
addresses {
  https = "$address"
}
ports {
  https    = 8501
  grpc_tls = 8503
}
tls {
  defaults {
    ca_file         = "$dir/tls/consul-agent-ca.pem"
    cert_file       = "$dir/tls/dc1-server-consul-0.pem"
    key_file        = "$dir/tls/dc1-server-consul-0-key.pem"
    verify_incoming = false
    verify_outgoing = true
  }
  internal_rpc {
    verify_incoming        = true
    verify_server_hostname = true
  }
}
auto_encrypt {
  allow_tls = true
}
acl {
  enabled                  = true
  default_policy           = "deny"
  enable_token_persistence = true
}
performance {
  raft_multiplier = 1
}
disable_update_check = true
END
start consul "$bin/consul" agent -config-file="$dir/consul.hcl"
export CONSUL_HTTP_ADDR=https://$address:8501 CONSUL_CACERT=$dir/ca/consul-agent-ca.pem
CONSUL_HTTP_TOKEN=$(patiently "$bin/consul" acl bootstrap -format=json | jq -r .SecretID)
export CONSUL_HTTP_TOKEN
patiently "$bin/consul" acl policy create -name=agents -rules='node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }' >/dev/null
agents=$("$bin/consul" acl token create -description="Consul agents" -policy-name=agents -format=json | jq -r .SecretID)
"$bin/consul" acl set-agent-token agent "$agents" >/dev/null
"$bin/consul" acl policy create -name=nomad -rules='agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" } service_prefix "" { policy = "write" }' >/dev/null
nomads=$("$bin/consul" acl token create -description="Nomad agents" -policy-name=nomad -format=json | jq -r .SecretID)

### Vault #############################################################################################################
cat >vault.hcl <<END
cluster_name  = "example"
api_addr      = "https://$address:8200"
cluster_addr  = "https://$address:8201"
disable_mlock = true
storage "raft" {
  path    = "$dir/vault"
  node_id = "$name"
}
listener "tcp" {
  address       = "$address:8200"
  tls_cert_file = "$dir/tls/vault.pem"
  tls_key_file  = "$dir/tls/vault-key.pem"
}
END
start vault "$bin/vault" server -config="$dir/vault.hcl"
export VAULT_ADDR=https://$address:8200 VAULT_CACERT=$dir/ca/vault-ca.pem
patiently "$bin/vault" operator init -key-shares=1 -key-threshold=1 -format=json >vault-init.json
patiently "$bin/vault" operator unseal "$(jq -r '.unseal_keys_b64[0]' vault-init.json)" >/dev/null
VAULT_TOKEN=$(jq -r .root_token vault-init.json)
export VAULT_TOKEN
patiently "$bin/vault" audit enable file file_path="$dir/vault-audit.log" >/dev/null
# Somebody else's.
"$bin/vault" secrets enable pki >/dev/null
"$bin/vault" write pki/root/generate/internal common_name="Example Corp. Issuing" ttl=8760h >/dev/null
"$bin/vault" secrets enable transit >/dev/null
"$bin/vault" write -f transit/keys/payments >/dev/null
"$bin/vault" secrets enable -version=2 -path=secret kv >/dev/null
"$bin/vault" auth enable approle >/dev/null
"$bin/vault" write auth/approle/role/ci token_ttl=5m >/dev/null

### Nomad #############################################################################################################
cat >nomad.hcl <<END
region     = "global"
datacenter = "dc1"
name       = "$name"
data_dir   = "$dir/nomad"
bind_addr  = "$address"
server {
  enabled          = true
  bootstrap_expect = 1
  encrypt          = "$("$bin/nomad" operator gossip keyring generate)"
}
acl {
  enabled = true
}
tls {
  http      = true
  rpc       = true
  ca_file   = "$dir/tls/nomad-agent-ca.pem"
  cert_file = "$dir/tls/global-server-nomad.pem"
  key_file  = "$dir/tls/global-server-nomad-key.pem"

  verify_server_hostname = true
  verify_https_client    = false
}
consul {
  address = "127.0.0.1:8500"
  token   = "$nomads"
}
disable_update_check = true
END
start nomad "$bin/nomad" agent -config="$dir/nomad.hcl"
export NOMAD_ADDR=https://$address:4646 NOMAD_CACERT=$dir/ca/nomad-agent-ca.pem
NOMAD_TOKEN=$(patiently "$bin/nomad" acl bootstrap -json | jq -r .SecretID)
export NOMAD_TOKEN

# operator_env CAS prints what an operator exports, with the directory of the CAs.
operator_env() {
  cat <<END
export CONSUL_HTTP_ADDR=$CONSUL_HTTP_ADDR CONSUL_HTTP_TOKEN=$CONSUL_HTTP_TOKEN CONSUL_CACERT=$1/consul-agent-ca.pem
export VAULT_ADDR=$VAULT_ADDR VAULT_TOKEN=$VAULT_TOKEN VAULT_CACERT=$1/vault-ca.pem
export NOMAD_ADDR=$NOMAD_ADDR NOMAD_TOKEN=$NOMAD_TOKEN NOMAD_CACERT=$1/nomad-agent-ca.pem
END
}
operator_env "$dir/ca" >operator.env

### Client machines ###################################################################################################
mkdir -p client/etc/{consul.d,nomad.d} client/usr/lib/systemd/system client/root client/etc/ssl/example
operator_env /etc/ssl/example >client/root/operator.env
cp ca/*.pem client/etc/ssl/example/
cp tls/consul-agent-ca.pem client/etc/consul.d/
cp tls/nomad-agent-ca.pem client/etc/nomad.d/
cp tls/global-client-nomad.pem tls/global-client-nomad-key.pem client/etc/nomad.d/
cat >client/etc/consul.d/consul.hcl <<END
datacenter = "dc1"
data_dir   = "/opt/consul"
encrypt    = "$gossip"
retry_join = ["$address"]
bind_addr  = "{{ GetInterfaceIP \"eth0\" }}"
auto_encrypt {
  tls = true
}
tls {
  defaults {
    ca_file         = "/etc/consul.d/consul-agent-ca.pem"
    verify_outgoing = true
  }
  internal_rpc {
    verify_server_hostname = true
  }
}
acl {
  enabled                  = true
  default_policy           = "deny"
  enable_token_persistence = true
  tokens {
    agent = "$agents"
  }
}
disable_update_check = true
END
cat >client/etc/nomad.d/nomad.hcl <<END
datacenter = "dc1"
data_dir   = "/opt/nomad/data"
bind_addr  = "0.0.0.0"
client {
  enabled = true
  servers = ["$address:4647"]
  options {
    # Not on a cloud: each of these waits for an answer.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
  # The default copies the whole of /usr for each task.
  chroot_env {
    "/usr/local/bin" = "/usr/local/bin"
    "/etc/passwd"    = "/etc/passwd"
    "/etc/group"     = "/etc/group"
  }
}
acl {
  enabled = true
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
tls {
  http      = true
  rpc       = true
  ca_file   = "/etc/nomad.d/nomad-agent-ca.pem"
  cert_file = "/etc/nomad.d/global-client-nomad.pem"
  key_file  = "/etc/nomad.d/global-client-nomad-key.pem"

  verify_server_hostname = true
  verify_https_client    = false
}
consul {
  address = "127.0.0.1:8500"
  token   = "$nomads"
}
disable_update_check = true
END
cat >client/usr/lib/systemd/system/consul.service <<'END'
[Unit]
Description="HashiCorp Consul - A service mesh solution"
Documentation=https://www.consul.io/
Requires=network-online.target
After=network-online.target
ConditionFileNotEmpty=/etc/consul.d/consul.hcl

[Service]
EnvironmentFile=-/etc/consul.d/consul.env
User=consul
Group=consul
ExecStart=/usr/bin/consul agent -config-dir=/etc/consul.d/
ExecReload=/bin/kill --signal HUP $MAINPID
KillMode=process
KillSignal=SIGTERM
Restart=on-failure
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
END
cat >client/usr/lib/systemd/system/nomad.service <<'END'
[Unit]
Description=Nomad
Documentation=https://nomadproject.io/docs/
Wants=network-online.target
After=network-online.target

[Service]
EnvironmentFile=-/etc/nomad.d/nomad.env
ExecReload=/bin/kill -HUP $MAINPID
ExecStart=/usr/bin/nomad agent -config /etc/nomad.d
KillMode=process
KillSignal=SIGINT
LimitNOFILE=65536
LimitNPROC=infinity
Restart=on-failure
RestartSec=2
OOMScoreAdjust=-1000
TasksMax=infinity

[Install]
WantedBy=multi-user.target
END
# What the packages' scripts do after the files are there.
cat >client/root/install-clients.sh <<'END'
set -eu
useradd --system --home-dir /etc/consul.d --shell /bin/false consul
install -d -o consul -g consul /opt/consul
install -d /opt/nomad/data /opt/cni/bin /opt/cni/config
chown -R consul:consul /etc/consul.d
chmod 640 /etc/consul.d/consul.hcl
chmod 700 /etc/nomad.d
cp /usr/lib/cni/* /opt/cni/bin/ # as the archive of the CNI project is unpacked
systemctl daemon-reload
systemctl enable -q --now consul nomad
END
echo "Consul, Vault and Nomad run at $address ($name)"
