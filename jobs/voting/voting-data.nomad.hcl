# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# The databases of voting, in zone gcp1.
job "voting-data" {
  datacenters = ["gcp1"]
  type        = "service"

  # A deployment is healthy when the checks of its services pass.
  update {
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "2m"
    progress_deadline = "3m"
  }

  group "voting-db" {
    connectivity {
      service = "voting-app/voting-db"
      respond = ["voting-backend", "voting-worker"]
    }

    service {
      name         = "voting-db"
      provider     = "consul"
      port         = "7001"
      address_mode = "alloc"

      check {
        type         = "http"
        path         = "/health"
        address_mode = "alloc"
        interval     = "2s"
        timeout      = "1s"
      }
    }

    restart {
      attempts = 3
      interval = "5m"
      delay    = "2s"
      mode     = "fail"
    }

    ephemeral_disk {
      size   = 150
      sticky = true
    }

    task "voting-db" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "/usr/local/bin/sif-demo"
        args    = ["voting-db"]
      }

      env {
        SIF_DEMO_NODE    = "${node.unique.name}"
        SIF_DEMO_RUNTIME = "process"
        SIF_DEMO_DATA    = "${NOMAD_ALLOC_DIR}/data/votes.jsonl"
      }

      resources {
        cpu    = 50
        memory = 64
      }

      logs {
        max_files     = 1
        max_file_size = 5
      }
    }
  }

  group "result-db" {
    connectivity {
      service = "voting-app/result-db"
      respond = ["result-worker", "result-backend"]
    }

    service {
      name         = "result-db"
      provider     = "consul"
      port         = "7002"
      address_mode = "alloc"

      check {
        type         = "http"
        path         = "/health"
        address_mode = "alloc"
        interval     = "2s"
        timeout      = "1s"
      }
    }

    restart {
      attempts = 3
      interval = "5m"
      delay    = "2s"
      mode     = "fail"
    }

    ephemeral_disk {
      size   = 150
      sticky = true
    }

    task "result-db" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "/usr/local/bin/sif-demo"
        args    = ["result-db"]
      }

      env {
        SIF_DEMO_NODE    = "${node.unique.name}"
        SIF_DEMO_RUNTIME = "process"
        SIF_DEMO_DATA    = "${NOMAD_ALLOC_DIR}/data/result.jsonl"
      }

      resources {
        cpu    = 50
        memory = 64
      }

      logs {
        max_files     = 1
        max_file_size = 5
      }
    }
  }
}
