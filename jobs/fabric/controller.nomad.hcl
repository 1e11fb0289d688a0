# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# The controller of a fabric as a Nomad job. It contains no secret: its task logs in to Vault with
# the workload identity that Nomad signs for it, and with Vault's identity tokens to Consul and
# Nomad. See README.md.

variable "fabric" {
  description = "The fabric's name, as in sif setup."
  default     = "sif"
}

variable "trust_domain" {
  description = "The trust domain, as in sif setup."
}

variable "node" {
  description = "The name of the Nomad node that it runs on, or those of several, separated by commas: one controller runs on each."
}

variable "port" {
  type    = number
  default = 8440
}

variable "command" {
  description = "The path to sif on that node."
  default     = "/usr/bin/sif"
}

variable "user" {
  description = "The user on that node; the package makes this one."
  default     = "sif"
}

variable "vault_address" {
  default = "https://127.0.0.1:8200"
}

variable "consul_address" {
  default = "127.0.0.1:8500"
}

variable "nomad_address" {
  default = "https://127.0.0.1:4646"
}

variable "vault_ca_file" {
  description = "The path to the CA's certificate on that node; empty for the system's."
  default     = ""
}

variable "consul_ca_file" {
  default = ""
}

variable "nomad_ca_file" {
  default = ""
}

variable "prefix" {
  description = "The prefix of names, as in sif setup."
  default     = "sif"
}

variable "pool4" {
  default = "100.64.0.0/10"
}

variable "pool6" {
  default = "fd5f:7369:6600::/48"
}

variable "node_prefix" {
  description = "How many bits the prefix of a workload node's IPv4 pool has."
  default     = 22
}

job "sif-controller" {
  type = "service"

  constraint {
    attribute = "${node.unique.name}"
    operator  = "set_contains_any"
    value     = var.node
  }

  constraint {
    operator = "distinct_hosts"
    value    = "true"
  }

  # One after the other: while one is replaced, another one leads.
  update {
    max_parallel     = 1
    min_healthy_time = "5s"
    healthy_deadline = "2m"
  }

  group "controller" {
    count = length(split(",", var.node))

    # The last signed revision and the audit log. They stay through updates of the job.
    ephemeral_disk {
      sticky  = true
      migrate = true
      size    = 500
    }

    network {
      port "api" {
        static = var.port
      }
    }

    service {
      name     = "sif-controller"
      provider = "nomad"
      port     = "api"

      # Answers 200 when it leads, or could, and can write.
      check {
        type            = "http"
        protocol        = "https"
        tls_skip_verify = true # its certificate names the fabric's identity, not this address
        path            = "/v1/health?standbyok=true"
        interval        = "5s"
        timeout         = "3s"
      }
    }

    task "controller" {
      driver       = "raw_exec"
      user         = var.user
      kill_timeout = "30s"

      config {
        command = var.command
        args    = ["controller", "-config=${NOMAD_TASK_DIR}/controller.hcl"]
      }

      # Vault's role is bound to this job, group, task and name. Nomad replaces the file before
      # the identity expires, and the controller reads it for each log-in.
      identity {
        name = "vault"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }

      template {
        destination = "local/controller.hcl"
        data        = <<-EOF
          fabric       = "${var.fabric}"
          trust_domain = "${var.trust_domain}"
          listen       = ":${var.port}"
          data_dir     = "{{ env "NOMAD_ALLOC_DIR" }}/data/controller"
          vault {
            address       = "${var.vault_address}"
            ca_file       = "${var.vault_ca_file}"
            jwt_mount     = "${var.prefix}-nomad"
            jwt_role      = "${var.prefix}-controller"
            jwt_file      = "{{ env "NOMAD_SECRETS_DIR" }}/nomad_vault.jwt"
            pki_mount     = "${var.prefix}-pki"
            transit_mount = "${var.prefix}-transit"
            transit_key   = "${var.prefix}"
          }
          consul {
            address     = "${var.consul_address}"
            ca_file     = "${var.consul_ca_file}"
            auth_method = "${var.prefix}"
            token_role  = "${var.prefix}-consul-job"
          }
          nomad {
            address     = "${var.nomad_address}"
            ca_file     = "${var.nomad_ca_file}"
            auth_method = "${var.prefix}"
            token_role  = "${var.prefix}-nomad-job"
          }
          pools {
            ipv4 = "${var.pool4}"
            ipv6 = "${var.pool6}"

            node_prefix = ${var.node_prefix}
          }
        EOF
      }

      resources {
        cpu    = 200
        memory = 256
      }
    }
  }
}
