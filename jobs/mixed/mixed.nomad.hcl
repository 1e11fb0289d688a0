# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# The containers and the process of the application.
job "mixed" {
  datacenters = ["aws1", "gcp1"]
  type        = "service"

  # A deployment is healthy when the checks of its services pass.
  update {
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "2m"
    progress_deadline = "3m"
  }

  group "page" {
    constraint {
      attribute = "${node.datacenter}"
      value     = "aws1"
    }

    network {
      port "http" {
        static = 18082
        to     = 8080
      }
    }

    connectivity {
      service   = "mixed-app/page"
      originate = ["plans"]
      respond   = ["users"]
    }

    service {
      name         = "mixed-page"
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

    task "page" {
      driver = "docker"
      user   = "65534"

      config {
        image      = "sif-demo:local"
        force_pull = false
        entrypoint = ["/usr/local/bin/sif-demo"]
        args       = ["http-proxy"]
        cap_drop   = ["all"]
      }

      env {
        SIF_DEMO_NODE    = "${node.unique.name}"
        SIF_DEMO_RUNTIME = "container"
        SIF_DEMO_URL_GETAWAY_SVC = "http://planner.mixed-app.sif:8080"
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

  group "planner" {
    constraint {
      attribute = "${node.datacenter}"
      value     = "gcp1"
    }

    connectivity {
      service   = "mixed-app/planner"
      originate = ["news-api", "places-api", "weather-api"]
      respond   = ["plans"]
    }

    service {
      name         = "mixed-planner"
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

    task "planner" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "/usr/local/bin/sif-demo"
        args    = ["getaway-svc"]
      }

      env {
        SIF_DEMO_NODE    = "${node.unique.name}"
        SIF_DEMO_RUNTIME = "process"
        SIF_DEMO_URL_NEWS_GW    = "http://news.mixed-app.sif:9001"
        SIF_DEMO_URL_PLACES_GW  = "http://places.mixed-app.sif:9002"
        SIF_DEMO_URL_WEATHER_GW = "http://weather.mixed-app.sif:9003"
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

  group "weather" {
    constraint {
      attribute = "${node.datacenter}"
      value     = "aws1"
    }

    connectivity {
      service = "mixed-app/weather"
      respond = ["weather-api"]
    }

    service {
      name         = "mixed-weather"
      provider     = "consul"
      port         = "9003"
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

    task "weather" {
      driver = "docker"
      user   = "65534"

      config {
        image      = "sif-demo:local"
        force_pull = false
        entrypoint = ["/usr/local/bin/sif-demo"]
        args       = ["weather-gw"]
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
