# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# The stateless services of voting.
job "voting" {
  datacenters = ["aws1"]
  type        = "service"

  # A deployment is healthy when the checks of its services pass.
  update {
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "2m"
    progress_deadline = "3m"
  }

  group "voting-svc" {
    connectivity {
      service   = "voting-app/voting-svc"
      originate = ["voting-backend"]
      respond   = ["voting-frontend"]
    }

    service {
      name         = "voting-svc"
      provider     = "consul"
      port         = "8080"
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
      size = 150
    }

    task "voting-svc" {
      driver = "docker"
      user   = "65534"

      config {
        image      = "sif-demo:local"
        force_pull = false
        entrypoint = ["/usr/local/bin/sif-demo"]
        args       = ["voting-svc"]
        cap_drop   = ["all"]
      }

      env {
        SIF_DEMO_NODE    = "${node.unique.name}"
        SIF_DEMO_RUNTIME = "container"
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

  group "result-svc" {
    connectivity {
      service   = "voting-app/result-svc"
      originate = ["result-backend"]
      respond   = ["result-frontend"]
    }

    service {
      name         = "result-svc"
      provider     = "consul"
      port         = "8080"
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
      size = 150
    }

    task "result-svc" {
      driver = "docker"
      user   = "65534"

      config {
        image      = "sif-demo:local"
        force_pull = false
        entrypoint = ["/usr/local/bin/sif-demo"]
        args       = ["result-svc"]
        cap_drop   = ["all"]
      }

      env {
        SIF_DEMO_NODE    = "${node.unique.name}"
        SIF_DEMO_RUNTIME = "container"
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

  group "worker" {
    connectivity {
      service   = "voting-app/worker"
      originate = ["voting-worker", "result-worker"]
    }

    service {
      name         = "voting-worker"
      provider     = "consul"
      port         = "8080"
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
      size = 150
    }

    task "worker" {
      driver = "docker"
      user   = "65534"

      config {
        image      = "sif-demo:local"
        force_pull = false
        entrypoint = ["/usr/local/bin/sif-demo"]
        args       = ["worker"]
        cap_drop   = ["all"]
      }

      env {
        SIF_DEMO_NODE    = "${node.unique.name}"
        SIF_DEMO_RUNTIME = "container"
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
